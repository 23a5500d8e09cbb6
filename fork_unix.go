//go:build unix && !cluster_nofork

package cluster

import (
	"cmp"
	"encoding/json"
	"errors"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// canFork reports whether workers can be processes here.
const canFork = true

// active is set while a Master of this process has workers: they inherit all
// of the process's sockets, so that there can be only one.
var active atomic.Bool

// A forker starts worker processes.
type forker struct {
	m       *Master
	socket  *masterSocket
	sockets []*socket
	path    string
	args    []string // with the program's name
	env     []string
	added   string // "1" if GOMAXPROCS in env is ours
	slack   bool   // that is 1
	attr    syscall.SysProcAttr
	hold    atomic.Bool // workers accept only when they are told to
	dropped []int       // sockets that the new master doesn't want; the supervisor's
	done    bool        // closed for the last time; Master.mu guards it
}

// checkFork returns what is wrong with the settings for workers.
func (m *Master) checkFork() (errs []error) {
	if a := m.SysProcAttr; a != nil {
		if a.Credential != nil {
			errs = append(errs, errorf("cluster: SysProcAttr.Credential is set; use User and Group"))
		}
		if hasPdeathsig(a) {
			errs = append(errs, errorf("cluster: SysProcAttr.Pdeathsig is set; workers end by themselves when their master has died"))
		}
		if a.Chroot != "" && m.Path == "" {
			errs = append(errs, errorf("cluster: SysProcAttr.Chroot is set; set Path to a program inside it"))
		}
	}
	if _, err := m.credential(); err != nil {
		errs = append(errs, err)
	}
	return errs
}

// credential looks User and Group up. It returns nil if neither is set.
func (m *Master) credential() (*syscall.Credential, error) {
	if m.User == "" && m.Group == "" {
		return nil, nil
	}
	if os.Geteuid() != 0 {
		return nil, errorf("cluster: User %q, Group %q: only root can run workers as somebody else", m.User, m.Group)
	}
	c := &syscall.Credential{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}
	if m.User != "" {
		u, err := user.Lookup(m.User)
		if err != nil {
			if u, err = user.LookupId(m.User); err != nil {
				id, perr := strconv.ParseUint(m.User, 10, 32)
				if perr != nil {
					return nil, errorf("cluster: User %q: no such user", m.User)
				}
				u = &user.User{Uid: m.User, Gid: strconv.FormatUint(id, 10)}
			}
		}
		if err := errors.Join(parseID(u.Uid, &c.Uid), parseID(u.Gid, &c.Gid)); err != nil {
			return nil, errorf("cluster: User %q: %w", m.User, err)
		}
	}
	if m.Group != "" {
		id := m.Group
		if g, err := user.LookupGroup(m.Group); err == nil {
			id = g.Gid
		}
		if err := parseID(id, &c.Gid); err != nil {
			return nil, errorf("cluster: Group %q: no such group", m.Group)
		}
	}
	return c, nil
}

func parseID(s string, id *uint32) error {
	n, err := strconv.ParseUint(s, 10, 32)
	*id = uint32(n)
	return err
}

// fork prepares this process to be a master and s to start its workers. The
// function it returns takes that back, or as much as those that are left can
// do without: they have the sockets themselves.
func (m *Master) fork(s *supervisor) (release func(), err error) {
	if !active.CompareAndSwap(false, true) {
		return nil, errorf("%w: another Master of this process has workers", ErrStarted)
	}
	defer func() {
		if err != nil {
			active.Store(false)
		}
	}()
	if os.Getpid() == 1 {
		becomeSubreaper() // of a container it is already
	}
	f := &forker{m: m}
	if err := f.prepare(s.size); err != nil {
		return nil, err
	}
	if f.socket, err = listenMaster(m.SocketPath, m.SocketFilename, m.logf); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.socket.close()
		}
	}()
	m.stopSignals = m.watchSignals(s.begun) // before anything announces that we are there
	defer func() {
		if err != nil {
			m.stopSignals()
		}
	}()
	defer func() {
		if err != nil {
			m.hooks.fire(fireClose) // some Start hooks have been called
			m.hooks.flush(m.timeout())
		}
	}()
	if err := m.fireStart(); err != nil {
		return nil, err
	}
	closeOnExecAll()
	reserveThreads()
	for _, sock := range shared.sockets() {
		if _, err := sock.park(); err != nil {
			return nil, errorf("cluster: %v: %w", sock, err)
		}
		if sock.queue == nil && !isPacket(sock.network) {
			if sock.queue, err = newQueue(); err != nil {
				return nil, errorf("cluster: handoff queue: %w", err)
			}
		}
	}
	dropped := shared.dropped()
	f.sockets = slices.DeleteFunc(shared.sockets(), func(s *socket) bool { return slices.Contains(dropped, s) })
	if !self.heir { // else the sockets are still another master's
		if err := f.setBacklogs(); err != nil {
			return nil, err
		}
	}
	setTitle(cmp.Or(m.Title, "cluster"))
	s.launch = f.launch
	s.quiesce = func() {
		for _, sock := range f.sockets {
			sock.quiesce()
		}
	}
	s.settled = func() { m.takeOver(s, f) }
	if n := f.apart(); n >= 0 {
		s.apart = f.sockets[n].apart
		s.covers = make([]*Worker, 1+len(f.sockets[n].ports))
	}
	s.waiting = self.heir
	m.forker, m.established, m.restarted = f, make(chan struct{}), make(chan struct{})
	f.hold.Store(self.heir)
	if self.heir {
		go m.watchPredecessor(s)
	}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.current == nil || m.heir.Load() != nil { // else a restart is about to pass them on
			f.close(s.over())
		}
	}, nil
}

// close closes what workers, and new masters, are given. done is whether it is
// called for the last time. Master.mu is held.
func (f *forker) close(done bool) {
	f.socket.close()
	shared.close(true) // what belongs to a new master it keeps
	f.done = done
	active.Store(!done)
}

// reserveThreads makes some threads that wait for work: where a user's
// processes are limited there may be no room for another one later, and the
// runtime ends a program that it can't give one.
func reserveThreads() {
	const spare = 8
	var all sync.WaitGroup
	all.Add(spare)
	for range spare {
		go func() {
			runtime.LockOSThread() // to one of its own, until all have one
			all.Done()
			all.Wait()
			runtime.UnlockOSThread()
		}()
	}
}

// setBacklogs makes the listeners' backlogs what the settings say.
func (f *forker) setBacklogs() error {
	n := f.m.backlog()
	if f.m.Backlog == 0 && !self.heir {
		return nil // else the old master's may have been less
	}
	for _, sock := range f.sockets {
		if isPacket(sock.network) {
			continue
		}
		var err error
		sock.control(func(fd int) { err = cmp.Or(err, setBacklog(fd, n)) })
		if err != nil {
			return errorf("cluster: Backlog %d for %v: %w", n, sock, err)
		}
	}
	return nil
}

// backlog returns Backlog, or more than the system's maximum.
func (m *Master) backlog() int { return cmp.Or(m.Backlog, 1<<16-1) }

// prepare decides what is the same for all workers.
func (f *forker) prepare(workers int) error {
	m := f.m
	cred, err := m.credential()
	if err != nil {
		return err
	}
	if m.SysProcAttr != nil {
		f.attr = *m.SysProcAttr
	}
	if !f.attr.Setsid && !f.attr.Setpgid {
		// Ctrl-C is for the master. In its session a worker could type into
		// its terminal, which is not for another user.
		f.attr.Setsid = cred != nil
		f.attr.Setpgid = cred == nil
	}
	f.attr.Credential = cred

	f.path = selfPath()
	name := os.Args[0]
	if m.Path != "" {
		dir, _ := os.Getwd() // Dir
		if f.path, err = lookPath(dir, m.Path); err != nil {
			return errorf("cluster: Path: %w", err)
		}
		name = m.Path
	}
	if f.path == "" {
		return errorf("cluster: this program's file can't be found; set Path")
	}
	args := m.Args
	if args == nil {
		args = os.Args[1:]
	}
	f.args = append([]string{name}, args...)

	f.env = cleanEnv()
	if os.Getenv("GOMAXPROCS") == "" {
		procs := max(1, defaultWorkers()/max(1, workers))
		f.env = append(f.env, "GOMAXPROCS="+strconv.Itoa(procs))
		f.added, f.slack = "1", procs == 1
	}
	return nil
}

// cleanEnv returns the environment without what is this package's own.
func cleanEnv() (env []string) {
	for _, kv := range os.Environ() {
		switch name, _, _ := strings.Cut(kv, "="); name {
		case envDescriptors, envWorker, envMasterPid:
		default:
			env = append(env, kv)
		}
	}
	return env
}

// selfPath returns a path under which the kernel finds this very program,
// whatever has become of its file.
func selfPath() string {
	const proc = "/proc/self/exe"
	if _, err := os.Readlink(proc); err == nil {
		return proc
	}
	if path, err := os.Executable(); err == nil {
		return path
	}
	path, _ := lookPath(firstDir, firstArgs[0])
	return path
}

// lookPath finds a program as a shell in the directory dir does, and makes
// its path absolute.
func lookPath(dir, name string) (string, error) {
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		candidates = nil
		for _, in := range filepath.SplitList(os.Getenv("PATH")) {
			if in != "" && name != "" {
				candidates = append(candidates, filepath.Join(in, name))
			}
		}
	}
	err := errorf("program %q: %w", name, os.ErrNotExist)
	for _, path := range candidates {
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		info, serr := os.Stat(path)
		switch {
		case serr != nil:
			if !errors.Is(serr, os.ErrNotExist) {
				err = serr
			}
		case info.IsDir() || info.Mode()&0o111 == 0:
			err = errorf("program %s: %w", path, os.ErrPermission)
		default:
			return path, nil
		}
	}
	return "", err
}

// launch forks one worker.
func (f *forker) launch(w *Worker, post func(event)) (process, error) {
	m := f.m
	c, err := f.start(&program{
		path:  f.path,
		args:  f.args,
		env:   append(f.env[:len(f.env):len(f.env)], envDescriptors+"=3,4,"+f.added, envMasterPid+"="+strconv.Itoa(os.Getpid()), envWorker+"="+strconv.Itoa(w.ID)),
		files: append([]*os.File{os.Stdin}, m.output()...),
		attr:  &f.attr,
		slack: f.slack,
	}, &settings{
		Title:     expand(cmp.Or(m.WorkerTitle, "cluster worker"), "{n}", w.ID),
		Timeout:   m.timeout(),
		Heartbeat: m.heartbeat(),
		Hold:      f.hold.Load(),
	}, w.ID)
	if err != nil {
		return nil, err
	}
	p := &workerProcess{childProcess: c, f: f}
	go c.serveLink(func(fr frame) { p.hear(w, fr, post) })
	go func() {
		state, exception := c.wait()
		post(event{kind: workerDead, w: w, state: state, err: exception})
	}()
	return p, nil
}

// apart returns the number of the socket that slots have one of their own
// beside, or -1.
//
//go:noinline
func (f *forker) apart() int {
	return slices.IndexFunc(f.sockets, func(s *socket) bool { return s.apart || len(s.ports) > 0 })
}

// port returns a slot's own socket. One that is new takes no connections
// while another master serves.
func (f *forker) port(sock *socket, slot int) (int, error) {
	backlog := f.m.backlog()
	if f.hold.Load() {
		backlog = 0
	}
	return sock.port(slot, backlog)
}

// A program is what a process is started with.
type program struct {
	path  string
	args  []string
	env   []string
	dir   string
	files []*os.File // standard input, output and error
	extra []int      // descriptors it gets as 5 and up
	attr  *syscall.SysProcAttr
	slack bool // in its timers
}

// start forks a child: a worker for the slot, or a new master, for which that
// is -1. It gets its end of the connection as descriptor 3, and that of the
// crash pipe as 4; then the settings, and the sockets.
func (f *forker) start(prog *program, set *settings, slot int) (*childProcess, error) {
	var fds []int
	for i, sock := range f.sockets {
		if sock.kept {
			set.Kept = append(set.Kept, i)
		}
		fd, err := sock.park()
		if sock.apart && slot > 0 {
			fd, err = f.port(sock, slot)
		}
		if err != nil {
			return nil, err
		}
		if fds = append(fds, fd); sock.queue != nil {
			fds = append(fds, sock.queue.fds[:]...)
		}
		ports, file := 0, ""
		if slot < 0 {
			if sock.inode.there() { // else it is somebody else's by now
				file = sock.inode.path
			}
			others := sock.others()
			ports = len(others)
			fds = append(fds, others...)
		}
		set.Sockets = append(set.Sockets, socketSetting{sock.network, sock.address, sock.queue != nil, int64(ports), file})
	}
	first, err := newFrame(frameSettings, set)
	if err != nil {
		return nil, err
	}
	conn, remote, err := newPair()
	if err != nil {
		return nil, err
	}
	defer unix.Close(remote)
	pr, pw, err := os.Pipe()
	if err != nil {
		conn.Close()
		return nil, err
	}
	defer pw.Close()
	c := &childProcess{crash: crashReader{f: pr}, told: make(chan struct{}), dumped: make(chan struct{})}
	c.id, err = prog.fork(remote, pw)
	if err != nil {
		conn.Close()
		pr.Close()
		return nil, errorf("cluster: fork: %w", err)
	}
	c.proc, _ = os.FindProcess(c.id) // a child that nobody has waited for is found
	c.link = newLink(conn)
	c.link.send(first)
	for len(fds) > 0 {
		n := min(len(fds), maxRights)
		c.link.send(frame{kind: frameSockets, fds: fds[:n]})
		fds = fds[n:]
	}
	go func() {
		c.crash.read()
		close(c.dumped)
	}()
	return c, nil
}

// fork starts the program.
func (prog *program) fork(link int, crash *os.File) (pid int, err error) {
	fds, release, err := rawFiles(append(prog.files, crash)...)
	if err != nil {
		return 0, err
	}
	defer release()
	files := []uintptr{fds[0], fds[1], fds[2], uintptr(link), fds[3]}
	for _, fd := range prog.extra {
		files = append(files, uintptr(fd))
	}
	if prog.slack {
		defer slacken()()
	}
	for deadline := time.Now().Add(time.Second); ; time.Sleep(5 * time.Millisecond) {
		pid, err = syscall.ForkExec(prog.path, prog.args, &syscall.ProcAttr{Dir: prog.dir, Env: prog.env, Files: files, Sys: prog.attr})
		if err != syscall.ETXTBSY || time.Now().After(deadline) {
			return pid, err // a file that has just been written may be busy for a moment
		}
	}
}

// rawFiles returns the descriptors of files as they are: File.Fd would make
// them blocking for every process that has them. release gives them back.
func rawFiles(files ...*os.File) (fds []uintptr, release func(), err error) {
	release = func() {
		for _, fd := range fds {
			unix.Close(int(fd))
		}
	}
	for _, f := range files {
		fd, err := dupOf(f)
		if err != nil {
			release()
			return nil, nil, err
		}
		fds = append(fds, uintptr(fd))
	}
	return fds, release, nil
}

// A childProcess is a worker or a new master, as the master that has forked
// it holds it.
type childProcess struct {
	id     int
	proc   *os.Process
	link   *link
	crash  crashReader
	told   chan struct{} // closed when it will tell no more
	dumped chan struct{} // closed when its crash pipe has been read
	dead   atomic.Bool
}

func (c *childProcess) pid() int { return c.id }

//go:noinline
func (c *childProcess) signal(sig os.Signal) error { return c.proc.Signal(sig) }

//go:noinline
func (c *childProcess) serve() error { return c.link.sendValue(frameServe, nil) }

// serveLink hands out what the child tells. Bad input ends the connection,
// which a worker takes for the death of its master: it drains, and is
// replaced.
func (c *childProcess) serveLink(handle func(frame)) {
	defer close(c.told)
	if c.link.read(0, handle) != nil {
		c.link.conn.Close()
	}
}

// wait reaps the process, and returns when all that it has told has been
// handed out.
func (c *childProcess) wait() (*os.ProcessState, error) {
	waitable(c.id)
	state, err := c.proc.Wait()
	c.dead.Store(true)
	// A process that it has forked by hand may hold these open for ever.
	late := time.AfterFunc(time.Second, func() {
		c.link.conn.Close()
		c.crash.f.Close()
	})
	defer late.Stop()
	<-c.told
	<-c.dumped
	c.link.close()
	c.crash.f.Close()
	if err != nil {
		return nil, err
	}
	return state, c.crash.exception()
}

// A workerProcess is a worker.
type workerProcess struct {
	*childProcess
	f    *forker
	owed int // bytes that it has told since hooks were known to have caught up
}

// maxOwed is how many bytes may wait for hooks.
const maxOwed = 256 << 10

// catchUp waits until hooks have been called for what the worker has told.
// One that tells more than they take then fills its own memory, and not the
// master's.
func (p *workerProcess) catchUp(w *Worker, post func(event)) {
	var done atomic.Bool
	p.f.m.hooks.fire(func(*Hooks) { done.Store(true) })
	for !done.Load() && !p.dead.Load() {
		time.Sleep(10 * time.Millisecond)
		post(event{kind: workerBeat, w: w}) // it isn't silent: we don't listen
	}
}

func (p *workerProcess) drain(last bool) error {
	return p.link.sendValue(frameDrain, &drainOrder{Last: last, Dropped: p.f.dropped})
}

func (p *workerProcess) message(name string, data json.RawMessage) error {
	return p.link.sendValue(frameMessage, &message{name, data})
}

// reopen gives the process the descriptors that Stdout and Stderr have now.
func (p *workerProcess) reopen() {
	f := frame{kind: frameReopen}
	if m := p.f.m; m.Stdout != nil || m.Stderr != nil {
		for _, file := range m.output() {
			if c, err := file.SyscallConn(); err == nil {
				c.Control(func(fd uintptr) { f.fds = append(f.fds, int(fd)) })
			}
		}
	}
	p.link.send(f)
}

// output returns what workers' standard output and error go to.
func (m *Master) output() []*os.File {
	return []*os.File{cmp.Or(m.Stdout, os.Stdout), cmp.Or(m.Stderr, os.Stderr)}
}

// cover has the process accept from the socket of another slot, or not any
// more.
func (p *workerProcess) cover(slot int, begin bool) {
	n := p.f.apart()
	f, _ := newFrame(frameCover, &coverOrder{int64(n), int64(slot)})
	if begin {
		fd, err := p.f.port(p.f.sockets[n], slot)
		if err != nil {
			return
		}
		f.fds = []int{fd}
	}
	p.link.send(f)
}

// abort makes the process dump its goroutines, and kills it when no more
// comes.
func (p *workerProcess) abort() {
	p.signal(syscall.SIGABRT)
	p.signal(syscall.SIGCONT) // in case it was stopped
	go func() {
		for before := int64(-1); !p.dead.Load(); time.Sleep(time.Second) {
			now := p.crash.total.Load()
			if now == before {
				p.signal(syscall.SIGKILL)
				return
			}
			before = now
		}
	}()
}

// hear posts what the worker tells.
func (p *workerProcess) hear(w *Worker, f frame, post func(event)) {
	e := event{w: w}
	var err error
	switch f.kind {
	case frameReady:
		e.kind = workerReady
	case frameFailed:
		var reason text
		e.kind, err = workerFailed, parse(f.payload, &reason)
		e.err = errors.New(reason.Text)
	case frameDraining:
		e.kind = workerDraining
	case frameBeat:
		var c counts
		e.kind, err = workerBeat, parse(f.payload, &c)
		e.conns, e.waiting = int(c.Open), c.Waiting
	case frameMessage:
		var msg message
		e.kind, err = workerMessage, parse(f.payload, &msg)
		e.name, e.data = msg.Name, msg.Data
	default:
		return
	}
	if err == nil {
		post(e)
	}
	if p.owed += frameHeader + len(f.payload); p.owed > maxOwed {
		p.owed = 0
		p.catchUp(w, post)
	}
}

// A crashReader reads what the runtime of a dying worker writes: the first
// 64 KiB are kept.
type crashReader struct {
	f     *os.File
	kept  []byte
	total atomic.Int64
}

const maxCrash = 64 << 10

func (c *crashReader) read() {
	b := make([]byte, 4<<10)
	for {
		n, err := c.f.Read(b)
		c.total.Add(int64(n))
		c.kept = append(c.kept, b[:min(n, maxCrash-len(c.kept))]...)
		if err != nil {
			return
		}
	}
}

// exception returns what the worker has died of, or nil if it has said
// nothing. Call it after read.
func (c *crashReader) exception() error {
	if len(c.kept) == 0 {
		return nil
	}
	text := string(c.kept)
	message, _, _ := strings.Cut(text, "\n\n")
	if i := strings.Index(message, "\ngoroutine "); i >= 0 {
		message = message[:i]
	}
	if message = strings.TrimSpace(message); message == "" {
		message = "fatal error" + inFunction(text)
	}
	return &Exception{Message: message, Stack: c.kept}
}

// inFunction names the function that has brought about a fatal error of the
// runtime, whose text is only on standard error: golang.org/issue/76859.
func inFunction(stack string) string {
	for line := range strings.Lines(stack) {
		switch i := strings.LastIndexByte(line, '('); {
		case i < 0, line[0] == '\t', strings.HasPrefix(line, "runtime."), strings.HasPrefix(line, "internal/"), strings.HasPrefix(line, "goroutine "):
		default:
			return " in " + line[:i]
		}
	}
	return ""
}
