// Package obs has the names of go-libp2p's package p2p/host/resource-manager/obs, so that
// a program that imports that package only changes the import. Each name stands for the
// one of package rcmgr.
//
// Deprecated: use the same names in package rcmgr.
package obs

import "github.com/weir-p2p/rcmgr"

// StatsTraceReporter is rcmgr.StatsTraceReporter.
//
// Deprecated: use rcmgr.StatsTraceReporter.
type StatsTraceReporter = rcmgr.StatsTraceReporter

// NewStatsTraceReporter is rcmgr.NewStatsTraceReporter.
//
// Deprecated: use rcmgr.NewStatsTraceReporter.
var NewStatsTraceReporter = rcmgr.NewStatsTraceReporter

// MustRegisterWith is rcmgr.MustRegisterWith.
//
// Deprecated: use rcmgr.MustRegisterWith.
var MustRegisterWith = rcmgr.MustRegisterWith
