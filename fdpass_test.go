//go:build unix && !cluster_nofork

package cluster

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// connPair returns two connected ends.
func connPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	a, fd, err := newPair()
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "peer")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	b = c.(*net.UnixConn)
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

// openFDs returns how many descriptors are open.
func openFDs() (n int) {
	for fd := range 4096 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			n++
		}
	}
	return n
}

// leaksNothing reports descriptors that f leaves open.
func leaksNothing(t *testing.T, f func()) {
	t.Helper()
	before := openFDs()
	f()
	if after := openFDs(); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

// files returns the descriptors of n different files, open until the test
// ends.
func files(t *testing.T, n int) (fds []int) {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		fd, err := dupOf(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		fds = append(fds, fd)
	}
	return fds
}

// sameFile reports whether two descriptors are of one file, and the second
// is close-on-exec.
func sameFile(t *testing.T, a, b int) bool {
	t.Helper()
	var sa, sb unix.Stat_t
	if err := errors.Join(unix.Fstat(a, &sa), unix.Fstat(b, &sb)); err != nil {
		t.Error(err)
		return false
	}
	flags, err := unix.FcntlInt(uintptr(b), unix.F_GETFD, 0)
	return sa.Ino == sb.Ino && err == nil && flags&unix.FD_CLOEXEC != 0
}

// wire returns the bytes of a frame.
func wire(version byte, kind frameKind, fds int, payload string) []byte {
	b := []byte{version, byte(kind), 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(b[2:], uint16(fds))
	binary.BigEndian.PutUint32(b[4:], uint32(len(payload)))
	return append(b, payload...)
}

// got is a frame as a test sees it.
type got struct {
	kind    frameKind
	payload string
	fds     int
}

// collect reads c to its end. The descriptors that come are closed.
func collect(c *net.UnixConn, accept int) (list []got, err error) {
	err = (&link{conn: c}).read(accept, func(f frame) {
		list = append(list, got{f.kind, string(f.payload), len(f.fds)})
		closeAll(f.fds)
	})
	return list, err
}

// encoded returns p as it goes over the wire.
func encoded(p payload) string {
	f, _ := newFrame(0, p)
	return string(f.payload)
}

func TestFramesArriveAsTheyWereSent(t *testing.T) {
	a, b := connPair(t)
	fds := files(t, 3)
	l := newLink(a)
	for _, err := range []error{
		l.sendValue(frameReady, nil),
		l.sendValue(frameMessage, &message{"hello", []byte(`{"n":1}`)}),
		l.send(frame{kind: frameSockets, fds: fds}),
		l.send(frame{kind: frameSockets, payload: []byte(`"with both"`), fds: fds[:1]}),
		l.sendValue(frameFailed, &text{"last"}),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	l.close() // sends all that is queued
	leaksNothing(t, func() {
		list, err := collect(b, maxRights)
		want := []got{
			{frameReady, "", 0},
			{frameMessage, encoded(&message{"hello", []byte(`{"n":1}`)}), 0},
			{frameSockets, "", 3},
			{frameSockets, `"with both"`, 1},
			{frameFailed, encoded(&text{"last"}), 0},
		}
		if err != nil || !slices.Equal(list, want) {
			t.Errorf("got %v, %v\nwant %v", list, err, want)
		}
	})
	if err := l.send(frame{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("send after close: %v", err)
	}
}

func TestThreeHundredDescriptorsArriveInOrder(t *testing.T) {
	a, b := connPair(t)
	fds := files(t, 300)
	l := newLink(a)
	if err := errors.Join(l.send(frame{kind: frameSockets, fds: fds[:maxRights]}), l.send(frame{kind: frameSockets, fds: fds[maxRights:]})); err != nil {
		t.Fatal(err)
	}
	l.close()
	var received []int
	defer func() { closeAll(received) }()
	frames := 0
	err := (&link{conn: b}).read(maxRights, func(f frame) {
		frames++
		received = append(received, f.fds...)
	})
	if err != nil || frames != 2 || len(received) != len(fds) {
		t.Fatalf("got %d frames with %d descriptors, %v", frames, len(received), err)
	}
	for i := range fds {
		if !sameFile(t, fds[i], received[i]) {
			t.Fatalf("descriptor %d is another file, or not close-on-exec", i)
		}
	}
}

func TestFrameWithTooManyDescriptorsIsNotSent(t *testing.T) {
	a, _ := connPair(t)
	l := newLink(a)
	l.send(frame{kind: frameSockets, fds: make([]int, maxRights+1)})
	<-l.flushed
	if err := l.send(frame{}); err == nil || !strings.Contains(err.Error(), "254 descriptors") {
		t.Errorf("the error is %v", err)
	}
}

func TestFramesMayBeSplitAndCoalesced(t *testing.T) {
	type part struct {
		b   []byte
		fds []int
	}
	const none = 1 << 20 // descriptors that can't be open
	parts := []part{
		{wire(1, frameSettings, 0, `{"sockets":[]}`), nil},
		{wire(1, frameSockets, 2, ""), []int{none, none + 1}},
		{wire(1, 99, 1, "?"), []int{none + 2}}, // a kind of the future is the handler's to skip
		{wire(1, frameSockets, 1, "x"), []int{none + 3}},
		{wire(1, frameServe, 0, ""), nil},
	}
	var all []byte
	starts := make(map[int][]int)
	for _, p := range parts {
		starts[len(all)] = p.fds
		all = append(all, p.b...)
	}
	check := func(name string, cuts ...int) {
		t.Helper()
		d := decoder{accept: 2}
		var frames []frame
		for from := 0; from < len(all); {
			to := len(all)
			if len(cuts) > 0 {
				to, cuts = cuts[0], cuts[1:]
			}
			var fds []int
			for i := from; i < to; i++ {
				fds = append(fds, starts[i]...)
			}
			if err := d.feed(bytes.Clone(all[from:to]), fds, func(f frame) { frames = append(frames, f) }); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			from = to
		}
		if len(frames) != len(parts) || len(d.buf) > 0 || len(d.fds) > 0 {
			t.Fatalf("%s: %d frames, and %d bytes and %d descriptors are left", name, len(frames), len(d.buf), len(d.fds))
		}
		for i, f := range frames {
			if !slices.Equal(f.fds, parts[i].fds) || !bytes.Equal(f.payload, parts[i].b[frameHeader:]) || byte(f.kind) != parts[i].b[1] {
				t.Errorf("%s: frame %d is %v", name, i, f)
			}
		}
	}
	check("coalesced")
	var every []int
	for i := 1; i < len(all); i++ {
		check(fmt.Sprintf("split at %d", i), i)
		every = append(every, i)
		for j := i + 1; j < len(all); j++ {
			check(fmt.Sprintf("split at %d and %d", i, j), i, j)
		}
	}
	check("byte by byte", every...)
}

func TestFramesMayComeByteByByteOffTheWire(t *testing.T) {
	a, b := connPair(t)
	fds := files(t, 2)
	written := make(chan struct{})
	before := openFDs()
	go func() {
		defer close(written)
		defer a.CloseWrite()
		for range 3 {
			for i, c := range wire(1, frameSockets, 2, "payload") {
				var oob []byte
				if i == 0 {
					oob = unix.UnixRights(fds...)
				}
				if _, _, err := a.WriteMsgUnix([]byte{c}, oob, nil); err != nil {
					t.Error(err)
				}
			}
			a.Write(wire(1, frameServe, 0, "")) // no boundary to the next
		}
	}()
	list, err := collect(b, 2)
	want := slices.Repeat([]got{{frameSockets, "payload", 2}, {frameServe, "", 0}}, 3)
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("got %v, %v", list, err)
	}
	<-written
	if n := openFDs(); n != before {
		t.Errorf("%d descriptors are open, %d were", n, before)
	}
}

func TestOddInput(t *testing.T) {
	serve := wire(1, frameServe, 0, "")
	big := wire(1, frameMessage, 0, "")
	binary.BigEndian.PutUint32(big[4:], maxPayload+1)
	huge := wire(1, frameMessage, 0, "")
	binary.BigEndian.PutUint32(huge[4:], 1<<32-1)
	type write struct {
		b   []byte
		fds int
	}
	tests := []struct {
		name   string
		accept int
		writes []write
		want   []got
		err    error
	}{
		{"nothing", 2, nil, nil, nil},
		{"unknown kind", 2, []write{{wire(1, 200, 0, "??"), 0}, {wire(1, 201, 2, ""), 2}, {serve, 0}},
			[]got{{200, "??", 0}, {201, "", 2}, {frameServe, "", 0}}, nil},
		{"other version", 2, []write{{wire(2, frameServe, 2, "??"), 2}, {wire(255, 1, 0, ""), 0}, {serve, 0}},
			[]got{{frameServe, "", 0}}, nil},
		{"no version", 2, []write{{serve, 0}, {wire(0, frameServe, 1, ""), 1}, {serve, 0}}, []got{{frameServe, "", 0}}, errMalformed},
		{"oversized", 2, []write{{serve, 0}, {big, 0}}, []got{{frameServe, "", 0}}, errMalformed},
		{"oversized with descriptors", 2, []write{{huge, 2}}, nil, errMalformed},
		{"end in the header", 2, []write{{serve, 0}, {serve[:5], 0}}, []got{{frameServe, "", 0}}, nil},
		{"end in the header, after descriptors", 2, []write{{wire(1, frameSockets, 2, "")[:1], 2}}, nil, nil},
		{"end in the payload", 2, []write{{wire(1, frameMessage, 0, "payload")[:12], 0}}, nil, nil},
		{"end in the payload, after descriptors", 2, []write{{wire(1, frameSockets, 2, "payload")[:12], 2}}, nil, nil},
		{"descriptors that nobody may send", 0, []write{{wire(1, frameSockets, 1, ""), 1}}, nil, errMalformed},
		{"descriptors that nobody may send or has announced", 0, []write{{serve, 1}}, []got{{frameServe, "", 0}}, errMalformed},
		{"descriptors with half a frame", 0, []write{{serve[:4], 3}}, nil, errMalformed},
		{"descriptors that are not announced", 2, []write{{serve, 1}}, []got{{frameServe, "", 0}}, errMalformed},
		{"more descriptors than announced", 2, []write{{wire(1, frameSockets, 1, ""), 2}}, []got{{frameSockets, "", 1}}, errMalformed},
		{"fewer descriptors than announced", 2, []write{{wire(1, frameSockets, 2, ""), 1}}, nil, errMalformed},
		{"no descriptors where some are announced", 2, []write{{wire(1, frameSockets, 1, ""), 0}}, nil, errMalformed},
		{"more descriptors than one may send", 2, []write{{wire(1, frameSockets, 3, ""), 3}}, nil, errMalformed},
		{"many descriptors on many bytes", 2, []write{{serve[:1], 2}, {serve[1:2], 2}, {serve[2:3], 2}}, nil, errMalformed},
	}
	fds := files(t, 3)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := connPair(t)
			leaksNothing(t, func() {
				for _, w := range tt.writes {
					var oob []byte
					if w.fds > 0 {
						oob = unix.UnixRights(fds[:w.fds]...)
					}
					if _, _, err := a.WriteMsgUnix(w.b, oob, nil); err != nil {
						t.Fatal(err)
					}
				}
				a.CloseWrite()
				list, err := collect(b, tt.accept)
				if !slices.Equal(list, tt.want) || err != tt.err {
					t.Errorf("got %v, %v\nwant %v, %v", list, err, tt.want, tt.err)
				}
			})
		})
	}
}

func TestDescriptorsForWhichThereIsNoRoomEndTheConnection(t *testing.T) {
	a, b := connPair(t)
	fds := files(t, 8)
	if _, _, err := a.WriteMsgUnix(wire(1, frameSockets, 8, ""), unix.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	// Room for a few only: the kernel sets MSG_CTRUNC.
	highest := slices.Max(fds)
	few := old
	setTo(&few.Cur, highest+4)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	leaksNothing(t, func() {
		if list, err := collect(b, maxRights); len(list) > 0 || err != errMalformed {
			t.Errorf("got %v, %v", list, err)
		}
	})
}

// setTo is for fields whose type is not the same everywhere.
func setTo[T int64 | uint64](p *T, n int) { *p = T(n) }

func TestPeerThatDiesIsNoticed(t *testing.T) {
	a, b := connPair(t)
	l := newLink(a)
	b.Close()
	for l.send(frame{kind: frameReady}) == nil {
		select {
		case <-l.flushed:
		default:
		}
	}
	if err := l.send(frame{kind: frameReady}); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("send: %v", err)
	}
	if err := l.read(0, nil); err != nil {
		t.Errorf("read: %v, want a plain end", err)
	}
	l.close()
	l.close()
}

func TestSendNeverBlocks(t *testing.T) {
	a, b := connPair(t)
	l := newLink(a)
	payload := make([]byte, maxPayload)
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		err = l.send(frame{kind: frameMessage, payload: payload})
	}
	if !queueFull(err) || n < maxQueue/maxPayload || n > maxQueue/maxPayload+3 {
		t.Errorf("%d messages of a mebibyte were queued: %v", n, err)
	}
	// It is the peer's to make room.
	read := make(chan int)
	go func() {
		total, _ := io.Copy(io.Discard, b)
		read <- int(total)
	}()
	for {
		if err := l.send(frame{kind: frameReady}); err == nil {
			break
		} else if !queueFull(err) {
			t.Fatal(err)
		}
	}
	l.close()
	if got, want := <-read, (n-1)*(frameHeader+maxPayload)+frameHeader; got != want {
		t.Errorf("the peer has read %d bytes, want %d", got, want)
	}
}

// A sign of life doesn't wait for what else there is to tell.
func TestSignOfLifeGoesFirst(t *testing.T) {
	a, b := connPair(t)
	l := newLink(a)
	payload := make([]byte, maxPayload)
	for l.send(frame{kind: frameMessage, payload: payload}) == nil {
	}
	for n := range int64(3) { // only the last is news
		if err := l.sendValue(frameBeat, &counts{Open: n}); err != nil {
			t.Fatal(err)
		}
	}
	go l.close()
	list, err := collect(b, 0)
	if err != nil || len(list) < 4 {
		t.Fatalf("%d frames, %v", len(list), err)
	}
	beats := 0
	for i, f := range list {
		if f.kind != frameBeat {
			continue
		}
		if beats++; i > 1 || f.payload != encoded(&counts{Open: 2}) { // a message may have been on its way
			t.Errorf("frame %d is a sign of life, %q", i, f.payload)
		}
	}
	if beats != 1 {
		t.Errorf("%d signs of life", beats)
	}
}

func TestCloseWaitsForAPeerThatDoesNotReadNoLongerThanASecond(t *testing.T) {
	a, _ := connPair(t)
	l := newLink(a)
	for range 3 {
		l.send(frame{kind: frameMessage, payload: make([]byte, maxPayload)})
	}
	began := time.Now()
	l.close()
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("close took %v", d)
	}
}

func TestMessageMayHaveTheFullSize(t *testing.T) {
	a, b := connPair(t)
	l := newLink(a)
	full := strings.Repeat("x", maxPayload-4) // less its length
	if err := l.sendValue(frameFailed, &text{full[:maxPayload-4]}); err != nil {
		t.Fatal(err)
	}
	full = full[:maxPayload-4]
	for len(encoded(&text{full})) < maxPayload {
		full += "x"
	}
	if err := l.sendValue(frameFailed, &text{full + "x"}); err == nil || !strings.Contains(err.Error(), "1048577") {
		t.Errorf("one byte more: %v", err)
	}
	go l.close()
	list, err := collect(b, 0)
	if err != nil || len(list) != 1 || list[0].payload != encoded(&text{full[:maxPayload-4]}) {
		t.Errorf("%d frames arrived, %v", len(list), err)
	}
}

// What a worker says reaches the supervisor; nonsense ends the connection.
func TestMasterListensToWorkers(t *testing.T) {
	tests := []struct {
		name string
		wire []byte
		want string
		ends bool // by the master
	}{
		{"ready", wire(1, frameReady, 0, ""), "ready", false},
		{"failed", wire(1, frameFailed, 0, encoded(&text{"oops"})), "failed oops", false},
		{"draining", wire(1, frameDraining, 0, ""), "draining", false},
		{"beat", wire(1, frameBeat, 0, encoded(&counts{2, true})), "beat 2 true", false},
		{"beat of the future", wire(1, frameBeat, 0, encoded(&counts{2, false})+"more"), "beat 2 false", false},
		{"message", wire(1, frameMessage, 0, encoded(&message{"a", []byte(`{"b":1}`)})), `message a {"b":1}`, false},
		{"kind of the future", wire(1, 77, 0, "not JSON"), "", false},
		{"kind for workers", wire(1, frameDrain, 0, encoded(&drainOrder{Last: true})), "", false},
		{"bad payload", wire(1, frameBeat, 0, "\xff"), "", false},
		{"a descriptor", wire(1, frameReady, 1, ""), "", true},
		{"version 0", wire(0, frameReady, 0, ""), "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := connPair(t)
			p := &workerProcess{childProcess: &childProcess{link: newLink(a), told: make(chan struct{})}}
			var events []string
			post := func(e event) {
				switch e.kind {
				case workerReady:
					events = append(events, "ready")
				case workerFailed:
					events = append(events, "failed "+e.err.Error())
				case workerDraining:
					events = append(events, "draining")
				case workerBeat:
					events = append(events, fmt.Sprintf("beat %d %v", e.conns, e.waiting))
				case workerMessage:
					events = append(events, "message "+e.name+" "+string(e.data))
				}
			}
			go p.serveLink(func(f frame) { p.hear(&Worker{}, f, post) })
			b.Write(tt.wire)
			if tt.ends {
				b.SetReadDeadline(time.Now().Add(time.Minute))
				if _, err := b.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("the connection doesn't end: %v", err)
				}
			}
			b.CloseWrite()
			<-p.told
			if got := strings.Join(events, ", "); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			p.link.close()
		})
	}
}

// A child closes descriptors that it has not asked for, whatever frame they
// come with.
func TestChildClosesUninvitedDescriptors(t *testing.T) {
	cleanUp(t)
	a, b := connPair(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sock, err := dupOf(l.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sock)
	some := files(t, 3)
	c := child{
		link: &link{conn: b}, got: make(chan struct{}), frames: make(chan frame, 16),
		served: make(chan struct{}), gone: make(chan struct{}),
	}
	c.begun.Store(true) // or it would end when it is told to drain
	before := openFDs()
	set := settings{Hold: true, Sockets: []socketSetting{{"tcp", "127.0.0.1:0", false, 0, ""}}}
	for _, f := range []frame{
		{kind: 99, fds: some[:1]},
		{kind: frameServe, fds: some[:1]}, // too early, too
		{kind: frameCover, fds: some[:1]},
		{kind: frameSettings, payload: []byte(encoded(&set)), fds: some[:2]},
		{kind: frameSettings, payload: []byte(encoded(&set)), fds: some[:2]},
		{kind: frameReopen, fds: some[:1]},
		{kind: frameReopen, fds: some},
		{kind: frameSockets, fds: []int{sock}},
		{kind: frameSockets, fds: some},
		{kind: frameServe, fds: some},
		{kind: frameServe, fds: some},
		{kind: frameDrain, fds: some},
		{kind: frameCover, fds: some[:2]},
		{kind: frameCover, payload: []byte(encoded(&coverOrder{Socket: 1})), fds: some[:1]},
		{kind: frameMessage, payload: []byte("\xff"), fds: some},
	} {
		if err := writeFrame(a, f); err != nil {
			t.Fatal(err)
		}
	}
	a.CloseWrite()
	c.read()
	if err := c.await(); err != nil {
		t.Error(err)
	}
	if !isClosedChan(c.served) || !isClosedChan(c.gone) {
		t.Error("a frame was not heard")
	}
	if n := openFDs(); n != before+1 { // the socket
		t.Errorf("%d descriptors are open, want %d", n, before+1)
	}
}

// FuzzDecoder checks that however the bytes of a stream are cut, the same
// frames come out, and that no descriptor is handed out twice.
func FuzzDecoder(f *testing.F) {
	var stream []byte
	for _, b := range [][]byte{wire(1, frameSettings, 0, "{}"), wire(1, frameSockets, 2, ""), wire(2, frameServe, 1, "x"), wire(1, 99, 0, "?"), wire(1, frameServe, 0, "")} {
		f.Add(b, uint8(2), uint8(0), uint8(3))
		stream = append(stream, b...)
	}
	f.Add(stream, uint8(2), uint8(3), uint8(1))
	f.Add(stream, uint8(2), uint8(0), uint8(7))
	f.Add(wire(0, frameServe, 0, ""), uint8(0), uint8(0), uint8(1))
	f.Add([]byte{1, 1, 0, 0, 0xff, 0xff, 0xff, 0xff}, uint8(0), uint8(1), uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, accept, fds, chunk uint8) {
		const none = 1 << 20 // descriptors that can't be open
		run := func(chunk, fds int) (frames []frame, err error) {
			d := decoder{accept: int(accept)}
			next := none
			for b := data; len(b) > 0 && err == nil; {
				n := min(chunk, len(b))
				var some []int
				for range min(fds, 3) {
					some = append(some, next)
					next++
					fds--
				}
				err = d.feed(bytes.Clone(b[:n]), some, func(f frame) { frames = append(frames, f) })
				b = b[n:]
			}
			if err != nil && err != errMalformed {
				t.Fatal(err)
			}
			if err != nil && d.fds != nil {
				t.Fatal("descriptors are kept after an error")
			}
			if len(d.fds) > 2*int(accept) {
				t.Fatalf("%d descriptors are kept, one frame may have %d", len(d.fds), accept)
			}
			last := none - 1
			for _, f := range frames {
				if len(f.fds) > int(accept) || len(f.payload) > maxPayload {
					t.Fatalf("frame with %d descriptors and %d bytes", len(f.fds), len(f.payload))
				}
				for _, fd := range f.fds {
					if fd <= last {
						t.Fatal("descriptors are out of order, or handed out twice")
					}
					last = fd
				}
			}
			return frames, err
		}
		run(max(1, int(chunk)), int(fds))
		whole, err1 := run(len(data), 0)
		parts, err2 := run(max(1, int(chunk)), 0)
		if err1 != err2 || !slices.EqualFunc(whole, parts, func(a, b frame) bool {
			return a.kind == b.kind && bytes.Equal(a.payload, b.payload)
		}) {
			t.Fatalf("whole: %d frames, %v; in chunks of %d: %d frames, %v", len(whole), err1, chunk, len(parts), err2)
		}
	})
}

func TestMasterSocketIsPrivateFromBirth(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "m.sock")
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	stop := make(chan struct{})
	looked := make(chan int)
	go func() {
		n := 0
		defer func() { looked <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if fi, err := os.Lstat(path); err == nil {
				n++
				if fi.Mode().Perm() != 0o600 {
					t.Errorf("mode %v", fi.Mode())
					<-stop
					return
				}
			}
		}
	}()
	for range 200 {
		s, err := listenMaster(dir, "m.sock", t.Logf)
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Lstat(path); err != nil || fi.Mode() != os.ModeSocket|0o600 {
			t.Fatalf("mode %v, %v", fi.Mode(), err)
		}
		s.close()
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("the socket is left behind: %v", err)
		}
	}
	close(stop)
	if <-looked == 0 {
		t.Log("nobody has seen the socket in time")
	}
}

// A pair is connected, and the child's end is close-on-exec.
func TestPairs(t *testing.T) {
	for range 10 {
		leaksNothing(t, func() {
			c, fd, err := newPair()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("the child's end is not close-on-exec: %v", err)
			}
			child := adopt(fd)
			if child == nil {
				t.Fatal("the child wouldn't take it for a connection")
			}
			defer child.Close()
			if _, err := c.Write([]byte("x")); err != nil {
				t.Error(err)
			}
			b := make([]byte, 2)
			if n, err := child.Read(b); n != 1 || err != nil {
				t.Errorf("read %d bytes, %v", n, err)
			}
		})
	}
}

func TestMasterSocketPathIsAsSet(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct{ name, want string }{
		{"", fmt.Sprintf("cluster.%d.server.sock", os.Getpid())},
		{"x.sock", "x.sock"},
		{"{PID}-{PID}", fmt.Sprintf("%d-%[1]d", os.Getpid())},
	} {
		s, err := listenMaster(dir, tt.name, t.Logf)
		if err != nil {
			t.Fatal(err)
		}
		if want := filepath.Join(dir, tt.want); s.path != want {
			t.Errorf("path %s, want %s", s.path, want)
		}
		s.close()
	}
}

func TestMasterSocketErrorsTellWhatToSet(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("x", maxSocketPath))
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		dir, name string
		want      []string
	}{
		{long, "", []string{"SocketPath", fmt.Sprint(maxSocketPath)}},
		{filepath.Join(dir, "missing"), "", []string{"SocketPath"}},
		{dir, "file", []string{"SocketPath"}},
	} {
		s, err := listenMaster(tt.dir, tt.name, t.Logf)
		if err == nil {
			t.Errorf("%s: no error", tt.dir)
			s.close()
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error doesn't say %q: %v", want, err)
			}
		}
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file has become %q, %v", b, err)
	}
}

// staleSocket makes a socket file that nobody serves.
func staleSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestStaleMasterSocketsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	self := fmt.Sprintf("cluster.%d.server.sock", os.Getpid())
	for _, name := range []string{"cluster.99999999.server.sock", "cluster.1.server.sock", self, "cluster.x.server.sock", "other.1.server.sock"} {
		staleSocket(t, in(name))
	}
	os.WriteFile(in("cluster.2.server.sock"), nil, 0o644) // a regular file
	live, err := net.Listen("unix", in("cluster.3.server.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	s, err := listenMaster(dir, "", t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	want := []string{self, "cluster.2.server.sock", "cluster.3.server.sock", "cluster.x.server.sock", "other.1.server.sock"}
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("left: %v\nwant: %v", names, want)
	}
}

// A new master has another name until it takes over, if the name is fixed.
func TestStaleMasterSocketOfANewMasterIsRemoved(t *testing.T) {
	dir := t.TempDir()
	staleSocket(t, filepath.Join(dir, "app.sock.1"))
	staleSocket(t, filepath.Join(dir, "app.sock.x"))
	s, err := listenMaster(dir, "app.sock", t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 2 {
		t.Errorf("left: %v, want app.sock and app.sock.x", names)
	}
}

// Nobody gets anything out of the master socket, not even the master.
func TestMasterSocketSendsEverybodyAway(t *testing.T) {
	s, err := listenMaster(t.TempDir(), "", t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for range 10 {
		c, err := net.Dial("unix", s.path)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		if n, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read %d bytes, %v", n, err)
		}
		c.Close()
	}
}

func queueFull(err error) bool {
	return err != nil && strings.Contains(err.Error(), "not reading its messages")
}
