package rcmgr

// Registration with Prometheus. Decisions report nothing: the stripes count, and a
// scrape reads the counts.
//
// libp2p.New registers the collectors of go-libp2p's own resource manager on the
// host's registerer, whichever manager the host uses. Dashboards know its fourteen
// families, so ours have to replace them, whether ours are registered before or after.
// (families.go has what they show, and the families that only this package has.) A
// registry takes two collectors for the same only if their descriptions are equal.
// Therefore each family here is one collector with exactly one description, which is
// taken from upstream's collector at registration. If ours are registered first,
// upstream's count as already registered, which libp2p accepts. If upstream's are
// registered first, ours replace them.
//
//	registry ── collector (one for each family) ─┐
//	            collector ───────────────────────┼─ view ── live managers ── Manager.read
//	            …                                ┘   one reading for all families of a scrape
//
// A view shows either one manager or the sum over all live ones. To the sum it adds what
// go-libp2p's own managers of the process hold, since it stands in place of their collectors.

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// MustRegisterWith registers metrics of this process's managers with a registerer. They
// show the sum over all open managers, with the names, labels and meaning of the metrics
// of go-libp2p's own resource manager, and some more. Managers that are made later are
// included. A manager that is closed leaves the sum, but its refusals stay counted.
//
// If other hosts of the process use go-libp2p's own resource manager, the metrics that both
// have show the sum over both. go-libp2p's part of it is what its own collectors show: the
// manager that changed last if there are several, and the limits of one that is closed.
//
// MustRegisterWith may be called before or after libp2p.New registers go-libp2p's own
// collectors, which it replaces. It may be called any number of times. If RegisterWith
// has registered a single manager that is still open, MustRegisterWith changes nothing.
// It panics if foreign collectors already have one of the names with another description.
// If they have the same description, which go-libp2p's own function ignores, it logs
// that and registers nothing. It is safe for concurrent use.
func MustRegisterWith(reg prometheus.Registerer) {
	err := live.register(reg, nil)
	var taken prometheus.AlreadyRegisteredError
	switch {
	case errors.As(err, &taken):
		log.Error("the metrics of resource managers are not shown: a foreign collector has one of their descriptions", "err", err)
	case err != nil:
		panic(err)
	}
}

// RegisterWith registers metrics of this manager alone with a registerer, under the same
// names as MustRegisterWith. It may be called before or after libp2p.New. What go-libp2p's own
// managers hold is not part of them.
//
// If another open manager or the sum over all managers is already registered there,
// RegisterWith changes nothing and returns an error. To show several managers, give each
// a prefix of its own with prometheus.WrapRegistererWithPrefix. A closed manager cannot be
// registered, and is replaced by the next one that is. RegisterWith is safe for
// concurrent use.
func (m *Manager) RegisterWith(reg prometheus.Registerer) error {
	if !live.has(m) {
		return errors.New("register metrics: the resource manager is closed or its metrics are disabled")
	}
	return live.register(reg, m)
}

// reader is a manager as metrics see it. read is called without the lock that add and
// remove take.
type reader interface{ read() reading }

// live is the only mutable state of the package. It is needed because, by Prometheus'
// convention, one function registers the metrics of a whole package, before anything of
// the package has been made.
var live = liveManagers{others: sync.OnceValue(upstreamRegistry)}

// liveManagers are the managers that the sum is taken over.
type liveManagers struct {
	// others returns what shows the managers of go-libp2p, which are part of the sum, too.
	// nil: they are not.
	others func() prometheus.Gatherer
	mu     struct {
		sync.Mutex
		managers map[reader]struct{}
		closed   counts // of closed managers, because counts must not fall
		settled  bool   // metrics have been registered, or it was warned that they are not
	}
}

// add is called when a manager is made.
func (l *liveManagers) add(m reader) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.managers == nil {
		l.mu.managers = make(map[reader]struct{})
	}
	l.mu.managers[m] = struct{}{}
}

// remove is called when a manager is closed, at a time when it admits nothing more and
// counts no more refusals. Removing it again does nothing.
func (l *liveManagers) remove(m reader) {
	last := m.read()
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.mu.managers[m]; ok {
		delete(l.mu.managers, m)
		l.mu.closed.add(&last.counts)
	}
}

func (l *liveManagers) has(m reader) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.mu.managers[m]
	return ok
}

// all returns the live managers, and the counts of those that are closed.
func (l *liveManagers) all() ([]reader, counts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.mu.managers)), l.mu.closed
}

// read returns the reading of one manager, which is empty if it is not live, or the sum
// over all if only is nil.
func (l *liveManagers) read(only reader) *reading {
	var sum readingSum
	if only == nil {
		if l.others != nil {
			sum.others, sum.othersErr = readOthers(l.others())
		}
		var managers []reader
		managers, sum.counts = l.all()
		for _, m := range managers {
			sum.add(m.read())
		}
	} else if l.has(only) {
		sum.add(only.read())
	}
	return sum.bounded()
}

// metricsView is what one registered set of collectors shows. Its families share a
// reading, so that a scrape takes only one and its numbers belong together.
type metricsView struct {
	live *liveManagers
	only reader // nil: the sum over all
	mu   struct {
		sync.Mutex
		reading *reading
		served  map[int]bool // the families that have used this reading
		taken   time.Time    // when the reading was taken
	}
}

// staleAfter bounds the age of a shared reading. An old one is left over only by scrapes
// that run concurrently, or that ask for a part of the families.
const staleAfter = time.Second

// reading returns the reading that a family shows. A family that has used the current one
// begins a new scrape, and so gets a new reading.
func (v *metricsView) reading(family int) *reading {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.mu.reading == nil || v.mu.served[family] || time.Since(v.mu.taken) >= staleAfter {
		v.mu.taken = time.Now() // before the reading, so that its age is not understated
		v.mu.reading, v.mu.served = v.live.read(v.only), make(map[int]bool, len(metricsFamilies))
	}
	v.mu.served[family] = true
	return v.mu.reading
}

// over reports whether the view shows a single manager that is closed.
func (v *metricsView) over() bool { return v.only != nil && !v.live.has(v.only) }

// accepts reports whether a view that is already registered may stay in place of this one.
func (v *metricsView) accepts(o *metricsView) bool { return v.only == nil || v.only == o.only }

// collector is one family of a view.
type collector struct {
	view   *metricsView
	family int // index into metricsFamilies
	desc   *prometheus.Desc
}

func (c *collector) Describe(to chan<- *prometheus.Desc) { to <- c.desc }

func (c *collector) Collect(to chan<- prometheus.Metric) {
	f, r := &metricsFamilies[c.family], c.view.reading(c.family)
	s := series{c.desc, to, maps.Clone(r.others[f.name])}
	f.series(r, s)
	s.sendOthers()
	if f.help == "" && r.othersErr != nil {
		s.send(nil, r.othersErr) // as without this package
	}
}

// register registers the metrics of one manager, or of the sum over all if only is nil.
// If it fails, it leaves none of its collectors registered.
func (l *liveManagers) register(reg prometheus.Registerer, only reader) error {
	if reg == nil {
		return errors.New("register metrics: the registerer is nil")
	}
	v := &metricsView{live: l, only: only}
	theirs := upstreamFamilies()
	var placed []*collector
	for i, f := range metricsFamilies {
		their, ok := theirs[f.name]
		if f.help != "" {
			their.desc = f.desc()
		} else if !ok {
			continue // this version of go-libp2p does not have the family
		}
		ours := &collector{view: v, family: i, desc: their.desc}
		ok, err := ours.place(reg, their.collector)
		if err != nil {
			for _, c := range placed {
				reg.Unregister(c)
			}
			return fmt.Errorf("register metrics: %s%s: %w", familyPrefix, f.name, err)
		}
		if ok {
			placed = append(placed, ours)
		}
	}
	l.settle()
	return nil
}

// settle notes that there is nothing to warn of any more, and reports whether that was noted
// before.
func (l *liveManagers) settle() (before bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before, l.mu.settled = l.mu.settled, true
	return before
}

// hiddenInterval is the time between two calls of warnIfHidden. It leaves a program that has
// made its manager the time to make its hosts and to register metrics.
const hiddenInterval = time.Minute

// warnIfHidden warns, once in a process, if go-libp2p's collectors are registered with reg and
// no metrics of this package have been registered anywhere. What is shown then looks complete,
// although no manager of this package is part of it.
func (l *liveManagers) warnIfHidden(reg prometheus.Registerer) {
	l.mu.Lock()
	settled := l.mu.settled
	l.mu.Unlock()
	if settled || !hasUpstream(reg) || l.settle() {
		return
	}
	log.Warn("go-libp2p's own metrics are registered with Prometheus, and do not show this resource manager: " +
		"call rcmgr.MustRegisterWith(prometheus.DefaultRegisterer), or make it with rcmgr.WithMetricsDisabled if it need not be shown")
}

var errShown = errors.New("another resource manager, or the sum over all, is shown on this registerer; " +
	"register with prometheus.WrapRegistererWithPrefix(prefix, registerer) to give this one a name of its own")

// placeAttempts bounds the attempts to register a collector. An attempt fails only if a
// concurrent libp2p.New registers its own collector after ours has made room.
const placeAttempts = 10

// place registers a collector. It replaces upstream's, and those of a manager that is
// closed. If one of ours is there that may stay, place returns false and no error.
func (c *collector) place(reg prometheus.Registerer, upstreams prometheus.Collector) (placed bool, err error) {
	for range placeAttempts {
		err = reg.Register(c)
		var taken prometheus.AlreadyRegisteredError
		if !errors.As(err, &taken) {
			return err == nil, err
		}
		if ours, ok := taken.ExistingCollector.(*collector); ok {
			if !ours.view.over() {
				if c.view.accepts(ours.view) {
					return false, nil
				}
				return false, errShown
			}
		} else if taken.ExistingCollector != upstreams {
			return false, err
		}
		reg.Unregister(taken.ExistingCollector)
	}
	return false, err
}
