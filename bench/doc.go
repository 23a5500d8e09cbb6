// Bench measures what package cluster costs and gains, beside its peers.
//
//	cd bench && go run . -all
//
// prints one table. All sides of a comparison take turns, round by round, so
// that what else the machine does meets them alike; the table shows medians of
// the rounds, and of the ratios of each round, with the least and the
// greatest. The client is the same for all: see load. It runs on the same
// machine, so that what the client takes is missing for the servers.
//
//	-run regexp      only the experiments that match; -list shows them
//	-rounds n        how often each side has its turn
//	-d duration      of one turn of a throughput figure
//	-short           does the programs work at all: figures mean nothing
//	-json file       all that was measured, turn by turn
//	-svg file        a plot of latency over time, across restarts
//	-markdown        the table as docs/performance.md has it
//
// Peers that are not installed (nginx, node, gunicorn) are skipped, and that
// is said. It needs Linux, and a clone of the repository: the servers are
// built from it.
//
// The module is one of its own, so that the cluster's has none of the
// dependencies that this needs. Tests that need other modules are here too.
package main
