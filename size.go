package cluster

import (
	"fmt"
	"sync"
)

// What is inlined wherever it is called makes a program larger. So some
// functions of this package are not, these above all.

// errorf is fmt.Errorf, as large as the rest of some functions. Where there is
// nothing to format it is smaller than errors.New, which is inlined.
//
//go:noinline
func errorf(format string, args ...any) error { return fmt.Errorf(format, args...) }

// A mutex is a sync.Mutex that is locked in a hundred places.
type mutex struct{ mu sync.Mutex }

//go:noinline
func (m *mutex) Lock() { m.mu.Lock() }

//go:noinline
func (m *mutex) Unlock() { m.mu.Unlock() }
