//go:build !unix

package cli

import (
	"errors"
	"runtime"

	"github.com/gocluster/cluster"
)

func attach(*cluster.Master, string) error { return nil }

func (c *call) control() error {
	return errors.New("there is no cluster to control: on " + runtime.GOOS + " the program serves in one process")
}
