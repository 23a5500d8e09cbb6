//go:build !race

package handoff_test

const race = false
