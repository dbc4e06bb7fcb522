// Package check asks every question of the dashboards and alerts of a
// Prometheus that has watched a flood: each must be answered. The flood
// (flood_test.go) is a real manager under a clock that a test turns; its
// metrics go through Prometheus' own parser into a store of samples
// (store_test.go), and its own engine evaluates the queries.
//
// It is a module of its own, so that who uses rcmgr needs no Prometheus.
//
//	go test -count=1 ./... # what it reads lies outside the module, which a cache does not see
package check
