// Package bench holds tests that need other modules. It is a module of its
// own, so that the cluster's has none of them.
package bench
