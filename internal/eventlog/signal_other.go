//go:build !unix

package eventlog

import "os"

// signalName is for workers, which there are none of here.
func signalName(sig os.Signal) string { return sig.String() }
