package reload

import (
	"errors"
	"hash/maphash"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

var seed = maphash.MakeSeed()

// note adds a file to the state of a subject.
func note(h *maphash.Hash, path string, info fs.FileInfo) {
	maphash.WriteComparable(h, struct {
		path                  string
		size, modified, inode int64
	}{path, info.Size(), info.ModTime().UnixNano(), inode(info)})
}

// look returns the state of all files that are watched.
func (w *watcher) look() (state uint64, err error) {
	var h maphash.Hash
	h.SetSeed(seed)
	w.entries = 0
	for _, path := range w.paths {
		root, err := filepath.EvalSymlinks(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			w.entries++
			if err == nil && path != root {
				switch name := d.Name(); {
				case d.IsDir() && w.ignored(name):
					return fs.SkipDir
				case !d.IsDir() && !w.counts(name):
					return nil
				}
			}
			if err == nil && !d.IsDir() {
				err = noteEntry(&h, path, d)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it has just been removed
			}
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	return h.Sum64(), nil
}

// noteEntry notes a regular file, or the one that a symbolic link leads to.
func noteEntry(h *maphash.Hash, path string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	if info.Mode().Type() == fs.ModeSymlink {
		if info, err = os.Stat(path); err != nil {
			return nil // it leads nowhere
		}
	}
	if info.Mode().IsRegular() {
		note(h, path, info)
	}
	return nil
}

// ignored reports whether a directory is not looked into.
func (w *watcher) ignored(name string) bool {
	return slices.ContainsFunc(w.IgnoreDirs, func(pattern string) bool {
		ok, _ := filepath.Match(pattern, name)
		return ok
	})
}

// counts reports whether a file's changes count.
func (w *watcher) counts(name string) bool {
	return w.Extensions == nil || slices.ContainsFunc(w.Extensions, func(ext string) bool {
		return strings.HasSuffix(name, ext)
	})
}

// What this process was started as. Its file may change before the cluster
// starts.
var (
	firstName    = strings.Clone(os.Args[0]) // a process title may overwrite it
	firstDir, _  = os.Getwd()
	firstProgram = findProgram()
)

// findProgram returns the state of the file that Master.Restart would now
// start, or 0 if there is none.
func findProgram() uint64 {
	names := []string{firstName}
	if !strings.ContainsRune(firstName, filepath.Separator) {
		names = nil
		for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
			if dir != "" {
				names = append(names, filepath.Join(dir, firstName))
			}
		}
		if exe, err := os.Executable(); err == nil {
			names = append(names, exe)
		}
	}
	for _, path := range names {
		if !filepath.IsAbs(path) {
			path = filepath.Join(firstDir, path)
		}
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			var h maphash.Hash
			h.SetSeed(seed)
			note(&h, path, info)
			return h.Sum64()
		}
	}
	return 0
}
