package rcmgr

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"
)

// The engine is what decides: the stripes, the scopes that all peers share, and what else
// each decision reads. A Manager is an engine with a front door and watchers; the engine
// knows nothing of those.

// engine is the part of a Manager that decides and accounts.
type engine struct {
	seed      maphash.Seed
	secret    subnetHash // chooses the stripes of peers
	stripes   []stripe
	idleConns sync.Pool // of *holder: they wait for the next connections; see lockIdle
	dir       directory
	drawing   drawingLock
	members   memberHistory // the most that any one has held
	fixed     [KindAllowlistedTransient + 1]*pool
	limits    atomic.Pointer[limitBook] // in force; see setlimits.go
	classes   classLimits               // in force
	admission Admission
	newcomers bool
	fair      *fairShare // nil: nobody has a share
	allowlist *Allowlist
	observed  observedKinds        // whose limits refuse nothing; see observe.go
	gates     atomic.Pointer[gate] // in force; see gateswap.go
	trace     *tracer              // nil: nobody listens
	reporter  MetricsReporter      // nil: nobody is told of decisions
	leaks     *leakFinder          // nil: no records of what is open
	pressure  *pressure            // nil: the process's memory is not looked at
	noting    bool                 // refusals are logged: remarks on them are kept

	lastID     atomic.Int64
	callerBugs atomic.Uint64
	bugLog     rate.Sometimes // I6: one line for a burst of bugs
	ended      atomic.Bool    // Close has begun
}
