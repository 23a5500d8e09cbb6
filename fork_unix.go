//go:build unix

package cluster

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
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
	attr    syscall.SysProcAttr
}

// checkFork returns what is wrong with the settings for workers.
func (m *Master) checkFork() error {
	var errs []error
	if a := m.SysProcAttr; a != nil {
		if a.Credential != nil {
			errs = append(errs, errors.New("cluster: SysProcAttr.Credential is set; use User and Group"))
		}
		if hasPdeathsig(a) {
			errs = append(errs, errors.New("cluster: SysProcAttr.Pdeathsig is set; workers end by themselves when their master has died"))
		}
		if a.Chroot != "" && m.Path == "" {
			errs = append(errs, errors.New("cluster: SysProcAttr.Chroot is set; set Path to a program inside it"))
		}
	}
	if _, err := m.credential(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// credential looks User and Group up. It returns nil if neither is set.
func (m *Master) credential() (*syscall.Credential, error) {
	if m.User == "" && m.Group == "" {
		return nil, nil
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("cluster: User %q, Group %q: only root can run workers as somebody else", m.User, m.Group)
	}
	c := &syscall.Credential{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}
	if m.User != "" {
		u, err := user.Lookup(m.User)
		if err != nil {
			if u, err = user.LookupId(m.User); err != nil {
				id, perr := strconv.ParseUint(m.User, 10, 32)
				if perr != nil {
					return nil, fmt.Errorf("cluster: User %q: no such user", m.User)
				}
				u = &user.User{Uid: m.User, Gid: strconv.FormatUint(id, 10)}
			}
		}
		if err := errors.Join(parseID(u.Uid, &c.Uid), parseID(u.Gid, &c.Gid)); err != nil {
			return nil, fmt.Errorf("cluster: User %q: %w", m.User, err)
		}
	}
	if m.Group != "" {
		id := m.Group
		if g, err := user.LookupGroup(m.Group); err == nil {
			id = g.Gid
		}
		if err := parseID(id, &c.Gid); err != nil {
			return nil, fmt.Errorf("cluster: Group %q: no such group", m.Group)
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
// function it returns takes that back.
func (m *Master) fork(s *supervisor) (stop func(), err error) {
	if !active.CompareAndSwap(false, true) {
		return nil, fmt.Errorf("%w: another Master of this process has workers", ErrStarted)
	}
	defer func() {
		if err != nil {
			active.Store(false)
		}
	}()
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
	stopSignals := m.watchSignals() // before anything announces that we are there
	defer func() {
		if err != nil {
			stopSignals()
		}
	}()
	if err := m.fireStart(); err != nil {
		return nil, err
	}
	closeOnExecAll()
	for _, sock := range shared.sockets() {
		if _, err := sock.park(); err != nil {
			return nil, fmt.Errorf("cluster: %v: %w", sock, err)
		}
		if m.Backlog > 0 && !isPacket(sock.network) {
			sock.control(func(fd int) { err = setBacklog(fd, m.Backlog) })
			if err != nil {
				return nil, fmt.Errorf("cluster: Backlog %d for %v: %w", m.Backlog, sock, err)
			}
		}
	}
	f.sockets = shared.sockets()
	setTitle(cmp.Or(m.Title, "cluster"))
	s.launch = f.launch
	s.quiesce = func() {
		for _, sock := range f.sockets {
			sock.quiesce()
		}
	}
	return func() {
		stopSignals()
		f.socket.close()
		shared.close(true)
		active.Store(false)
	}, nil
}

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
		f.attr.Setpgid = true // Ctrl-C is for the master
	}
	f.attr.Credential = cred

	f.path = selfPath()
	name := os.Args[0]
	if m.Path != "" {
		if f.path, err = lookPath(m.Path); err != nil {
			return fmt.Errorf("cluster: Path: %w", err)
		}
		name = m.Path
	}
	if f.path == "" {
		return errors.New("cluster: this program's file can't be found; set Path")
	}
	args := m.Args
	if args == nil {
		args = os.Args[1:]
	}
	f.args = append([]string{name}, args...)

	added := ""
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case envDescriptors, envWorker, envMasterPid:
		default:
			f.env = append(f.env, kv)
		}
	}
	if os.Getenv("GOMAXPROCS") == "" {
		f.env = append(f.env, "GOMAXPROCS="+strconv.Itoa(max(1, defaultWorkers()/max(1, workers))))
		added = "1"
	}
	f.env = append(f.env, envDescriptors+"=3,4,"+added, envMasterPid+"="+strconv.Itoa(os.Getpid()))
	return nil
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
	path, _ := lookPath(os.Args[0])
	return path
}

// lookPath finds a program as a shell does, and makes its path absolute.
func lookPath(name string) (string, error) {
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		candidates = nil
		for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
			if dir != "" && name != "" {
				candidates = append(candidates, filepath.Join(dir, name))
			}
		}
	}
	err := fmt.Errorf("program %q: %w", name, os.ErrNotExist)
	for _, path := range candidates {
		info, serr := os.Stat(path)
		switch {
		case serr != nil:
			if !errors.Is(serr, os.ErrNotExist) {
				err = serr
			}
		case info.IsDir() || info.Mode()&0o111 == 0:
			err = fmt.Errorf("program %s: %w", path, os.ErrPermission)
		default:
			return filepath.Abs(path)
		}
	}
	return "", err
}

// launch forks one worker.
func (f *forker) launch(w *Worker, post func(event)) (process, error) {
	m := f.m
	set := settings{
		Title:     strings.ReplaceAll(cmp.Or(m.WorkerTitle, "cluster worker"), "{n}", strconv.Itoa(w.ID)),
		Timeout:   m.timeout(),
		Heartbeat: m.heartbeat(),
	}
	var fds []int
	for _, sock := range f.sockets {
		set.Sockets = append(set.Sockets, socketSetting{sock.network, sock.address})
		fd, err := sock.park()
		if err != nil {
			return nil, err
		}
		fds = append(fds, fd)
	}

	conn, remote, err := f.socket.pair()
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
	p := &workerProcess{crash: crashReader{f: pr, eof: make(chan struct{})}}
	files, release, err := rawFiles(os.Stdin, cmp.Or(m.Stdout, os.Stdout), cmp.Or(m.Stderr, os.Stderr))
	if err == nil {
		var pipe int
		if pipe, err = dupOf(pw); err == nil {
			attr := f.attr
			p.id, err = syscall.ForkExec(f.path, f.args, &syscall.ProcAttr{
				Env:   append(f.env[:len(f.env):len(f.env)], envWorker+"="+strconv.Itoa(w.ID)),
				Files: append(files, uintptr(remote), uintptr(pipe)),
				Sys:   &attr,
			})
			unix.Close(pipe)
		}
		release()
	}
	if err != nil {
		conn.Close()
		pr.Close()
		return nil, fmt.Errorf("cluster: fork: %w", err)
	}
	p.proc, _ = os.FindProcess(p.id) // a child that nobody has waited for is found
	p.link = newLink(conn)
	p.link.sendValue(frameSettings, &set)
	for len(fds) > 0 {
		n := min(len(fds), maxRights)
		p.link.send(frame{kind: frameSockets, fds: fds[:n]})
		fds = fds[n:]
	}
	go p.crash.read()
	told := make(chan struct{})
	go p.listen(w, post, told)
	go p.wait(w, post, told)
	return p, nil
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

// A workerProcess is a worker process as its master holds it.
type workerProcess struct {
	id    int
	proc  *os.Process
	link  *link
	crash crashReader
	dead  atomic.Bool
}

func (p *workerProcess) pid() int { return p.id }

func (p *workerProcess) signal(sig os.Signal) error { return p.proc.Signal(sig) }

func (p *workerProcess) drain(last bool) error {
	return p.link.sendValue(frameDrain, &drainOrder{Last: last})
}

func (p *workerProcess) message(name string, data json.RawMessage) error {
	return p.link.sendValue(frameMessage, &message{name, data})
}

// abort makes the process dump its goroutines, and kills it when no more
// comes.
func (p *workerProcess) abort() {
	p.signal(syscall.SIGABRT)
	p.signal(syscall.SIGCONT) // in case it was stopped
	go func() {
		for before := int64(-1); !p.dead.Load(); {
			now := p.crash.total.Load()
			if now == before {
				p.signal(syscall.SIGKILL)
				return
			}
			before = now
			time.Sleep(time.Second)
		}
	}()
}

// listen posts what the worker tells. Bad input ends the connection, which
// the worker takes for the death of its master: it drains, and is replaced.
func (p *workerProcess) listen(w *Worker, post func(event), told chan<- struct{}) {
	defer close(told)
	err := p.link.read(0, func(f frame) {
		e := event{w: w}
		var err error
		switch f.kind {
		case frameReady:
			e.kind = workerReady
		case frameFailed:
			var why failure
			e.kind, err = workerFailed, parse(f.payload, &why)
			e.err = errors.New(why.Reason)
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
	})
	if err != nil && !errors.Is(err, net.ErrClosed) {
		p.link.conn.Close()
	}
}

// wait reaps the process and posts its death, after all that it has told.
func (p *workerProcess) wait(w *Worker, post func(event), told <-chan struct{}) {
	state, err := p.proc.Wait()
	p.dead.Store(true)
	// A process that it has forked by hand may hold these open for ever.
	late := time.AfterFunc(time.Second, func() {
		p.link.conn.Close()
		p.crash.f.Close()
	})
	<-told
	<-p.crash.eof
	late.Stop()
	p.link.close()
	p.crash.f.Close()
	e := event{kind: workerDead, w: w, state: state}
	if err == nil {
		e.err = p.crash.exception()
	}
	post(e)
}

// A crashReader reads what the runtime of a dying worker writes: the first
// 64 KiB are kept.
type crashReader struct {
	f     *os.File
	eof   chan struct{}
	kept  []byte
	total atomic.Int64
}

const maxCrash = 64 << 10

func (c *crashReader) read() {
	defer close(c.eof)
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
// nothing. Call it after eof.
func (c *crashReader) exception() error {
	if len(c.kept) == 0 {
		return nil
	}
	text := string(c.kept)
	message, _, _ := strings.Cut(text, "\n\n")
	if i := strings.Index(message, "\ngoroutine "); i >= 0 {
		message = message[:i]
	}
	return &Exception{Message: strings.TrimSpace(message), Stack: c.kept}
}
