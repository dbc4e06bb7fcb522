package rcmgr

// Prometheus. Nothing is reported while the manager works: the stripes count,
// and a scrape reads them.
//
// libp2p.New registers go-libp2p's own resource manager's collectors on the
// host's registerer, whichever manager the host runs on. Its fourteen families
// are the ones that dashboards know, so ours must stand in their place, in
// either order. (families.go has what they show, and those of our own.) A
// registry takes two collectors for one and the same only if their descriptions
// are equal; so each family here is one collector with exactly one description,
// and that is upstream's own, taken from it at registration. If ours came first,
// upstream's then count as registered already, which libp2p accepts; if
// upstream's came first, they are replaced.
//
//	registry ── collector (one for each family) ─┐
//	            collector ───────────────────────┼─ view ── live managers ── Manager.read
//	            …                                ┘   one reading for all families of a scrape
//
// A view is either the sum over all live managers or one of them.

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/prometheus/client_golang/prometheus"
)

// MustRegisterWith shows the managers of this process on a registerer: the sum
// over all that are open, under the names, labels and meaning of go-libp2p's
// own resource manager's metrics. Managers made later are in it too, and
// those that are closed leave it; what they refused stays counted. It may be
// called before or after libp2p.New has registered its own collectors there,
// which it replaces, and any number of times; where RegisterWith has put one
// open manager, that stays. It panics when collectors of another make stand in
// the way. It is safe for concurrent use.
func MustRegisterWith(reg prometheus.Registerer) {
	if err := live.register(reg, nil); err != nil {
		panic(err)
	}
}

// RegisterWith shows this manager alone on a registerer, under the same names
// as MustRegisterWith, before or after libp2p.New. Where another open manager
// or the sum over all is shown already, it changes nothing and returns an
// error; give each manager a name of its own with
// prometheus.WrapRegistererWithPrefix then. A closed manager cannot be
// registered; the place of one that was closed since goes to the next. It is
// safe for concurrent use.
func (m *Manager) RegisterWith(reg prometheus.Registerer) error {
	if !live.has(m) {
		return errors.New("register metrics: the resource manager is closed or its metrics are disabled")
	}
	return live.register(reg, m)
}

// reader is what metrics know of a manager. No lock that add, remove or
// register takes is held during read.
type reader interface{ read() reading }

// live is the only package-level state that changes: Prometheus' convention is
// one function that registers everything of a package, before anything of it
// has been made.
var live liveManagers

// liveManagers are those that the sum is taken over.
type liveManagers struct {
	mu struct {
		sync.Mutex
		managers map[reader]struct{}
		closed   counts // of managers that are closed: a count must not fall
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

// remove is called when a manager is closed, once it admits nothing more and so
// counts no more refusals. To remove it again does nothing.
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

// all gives the live managers, and what those before them counted.
func (l *liveManagers) all() ([]reader, counts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.mu.managers)), l.mu.closed
}

// read reads one manager while it is live, or, if only is nil, sums up all.
func (l *liveManagers) read(only reader) *reading {
	var sum readingSum
	if only == nil {
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

// metricsView is what one set of collectors shows. Its families share readings, so
// that the numbers of a scrape belong together and one scrape is one reading.
type metricsView struct {
	live *liveManagers
	only reader // nil: the sum over all
	mu   struct {
		sync.Mutex
		reading *reading
		served  map[int]bool // the families that have had this reading
		taken   time.Time    // when it was taken
	}
}

// staleAfter bounds the age of a shared reading. Only scrapes that run beside
// each other, or ask for a part of the families, ever leave one behind.
const staleAfter = time.Second

// reading returns what a family shows. A family that asks again begins a new
// scrape, and with it a new reading.
func (v *metricsView) reading(family int) *reading {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.mu.reading == nil || v.mu.served[family] || time.Since(v.mu.taken) >= staleAfter {
		v.mu.taken = time.Now() // before the cut, so that its age is not understated
		v.mu.reading, v.mu.served = v.live.read(v.only), make(map[int]bool, len(metricsFamilies))
	}
	v.mu.served[family] = true
	return v.mu.reading
}

// over tells that the manager that this view shows is closed.
func (v *metricsView) over() bool { return v.only != nil && !v.live.has(v.only) }

// accepts tells that another view may stand where this one was to be.
func (v *metricsView) accepts(o *metricsView) bool { return v.only == nil || v.only == o.only }

// collector is one family of a view.
type collector struct {
	view   *metricsView
	family int // among metricsFamilies
	desc   *prometheus.Desc
}

func (c *collector) Describe(to chan<- *prometheus.Desc) { to <- c.desc }

func (c *collector) Collect(to chan<- prometheus.Metric) {
	metricsFamilies[c.family].series(c.view.reading(c.family), series{c.desc, to})
}

// register shows one manager, or, if only is nil, the sum over all. When it
// fails, none of the collectors that it brought stays behind.
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
			continue // a go-libp2p that has dropped this family
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
	return nil
}

var errShown = errors.New("another resource manager, or the sum over all, is shown on this registerer; " +
	"register with prometheus.WrapRegistererWithPrefix(prefix, registerer) to give this one a name of its own")

// placeAttempts bounds how often a place is cleared: each further attempt needs
// a libp2p.New that takes the place in the meantime.
const placeAttempts = 10

// place registers a collector, in place of upstream's or of one whose manager is
// closed. Where one of ours stands that may stay, it is not placed, without an
// error.
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

// upstreamFamily is a family of go-libp2p's own resource manager.
type upstreamFamily struct {
	collector prometheus.Collector
	desc      *prometheus.Desc
}

// upstreamFamilies gives upstream's families by their name without the prefix,
// by letting upstream register them with nobody.
func upstreamFamilies() map[string]upstreamFamily {
	var seen memorizer
	upstream.MustRegisterWith(&seen)
	found := make(map[string]upstreamFamily, len(seen.collectors))
	for _, c := range seen.collectors {
		for desc := range descriptions(c) {
			// A description does not give its name away, except in its text.
			if _, text, ok := strings.Cut(desc.String(), `fqName: "`+familyPrefix); ok {
				name, _, _ := strings.Cut(text, `"`)
				found[name] = upstreamFamily{c, desc}
			}
		}
	}
	return found
}

func descriptions(c prometheus.Collector) <-chan *prometheus.Desc {
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		c.Describe(descs)
	}()
	return descs
}

// memorizer is a Registerer that remembers what it is given, and does nothing.
type memorizer struct{ collectors []prometheus.Collector }

func (m *memorizer) Register(c prometheus.Collector) error {
	m.collectors = append(m.collectors, c)
	return nil
}

func (m *memorizer) MustRegister(cs ...prometheus.Collector) {
	m.collectors = append(m.collectors, cs...)
}

func (m *memorizer) Unregister(prometheus.Collector) bool { return false }
