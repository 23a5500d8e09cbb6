// A server on Node's cluster. SIGHUP replaces the workers, each when its
// successor listens.
const cluster = require('cluster'), http = require('http');
const [host, port, workers] = process.argv.slice(2);

if (cluster.isPrimary) {
	for (let i = 0; i < workers; i++) cluster.fork();
	process.on('SIGHUP', () => {
		for (const old of Object.values(cluster.workers)) {
			cluster.fork().once('listening', () => old.disconnect());
		}
	});
} else {
	const pid = String(process.pid);
	http.createServer((req, res) => {
		res.writeHead(200, {'X-Pid': pid, 'Content-Type': 'text/plain', 'Content-Length': 12});
		res.end('Hello World\n');
	}).listen(port, host);
}
