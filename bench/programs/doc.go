// Package programs holds programs that run servers of other modules, each as
// small as can be, and a test that restarts each of them under load.
package programs
