//go:build !unix

package reload

import "io/fs"

func inode(fs.FileInfo) int64 { return 0 }
