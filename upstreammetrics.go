package rcmgr

// The metrics of go-libp2p's own managers: which collectors they are, what these show now, and
// whether they are registered where ours are missing. The collectors belong to go-libp2p's
// package, not to a manager: all of its managers in a process write to them.

import (
	"slices"
	"strings"

	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/prometheus/client_golang/prometheus"
)

// upstreamFamily is a family of go-libp2p's own resource manager.
type upstreamFamily struct {
	collector prometheus.Collector
	desc      *prometheus.Desc
}

// upstreamFamilies returns upstream's families by their name without the prefix. It lets
// upstream register them with a memorizer.
func upstreamFamilies() map[string]upstreamFamily {
	var seen memorizer
	upstream.MustRegisterWith(&seen)
	found := make(map[string]upstreamFamily, len(seen.collectors))
	for _, c := range seen.collectors {
		for desc := range descriptions(c) {
			// A description shows its name only in its text.
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

// memorizer is a Registerer that only records its collectors.
type memorizer struct{ collectors []prometheus.Collector }

func (m *memorizer) Register(c prometheus.Collector) error {
	m.collectors = append(m.collectors, c)
	return nil
}

func (m *memorizer) MustRegister(cs ...prometheus.Collector) {
	m.collectors = append(m.collectors, cs...)
}

func (m *memorizer) Unregister(prometheus.Collector) bool { return false }

// upstreamRegistry returns a registry that has upstream's collectors alone.
func upstreamRegistry() prometheus.Gatherer {
	reg := prometheus.NewRegistry()
	upstream.MustRegisterWith(reg)
	return reg
}

// readOthers reads what a registry shows now of our families. If a part of it cannot be read,
// it returns the rest and an error.
func readOthers(from prometheus.Gatherer) (otherSeries, error) {
	shown, err := from.Gather()
	read := make(otherSeries, len(shown))
	for _, f := range shown {
		name := strings.TrimPrefix(f.GetName(), familyPrefix)
		i := slices.IndexFunc(metricsFamilies[:], func(f metricsFamily) bool { return f.name == name })
		if i < 0 {
			continue
		}
		read[name] = make(map[string]otherMetric)
		for _, m := range f.GetMetric() {
			values := make(map[string]string)
			for _, l := range m.GetLabel() {
				values[l.GetName()] = l.GetValue()
			}
			o := otherMetric{value: m.GetGauge().GetValue()}
			for _, label := range metricsFamilies[i].labels {
				o.labels = append(o.labels, values[label])
			}
			if h := m.GetHistogram(); h != nil {
				o.histogram = &histogram{h.GetSampleCount(), h.GetSampleSum(), make(map[float64]uint64)}
				for _, b := range h.GetBucket() {
					o.histogram.upTo[b.GetUpperBound()] = b.GetCumulativeCount()
				}
			}
			read[name][seriesKey(o.labels)] = o
		}
	}
	return read, err
}

// hasUpstream reports whether upstream's collectors, or others of their names, are or have been
// registered with reg. It changes nothing there.
func hasUpstream(reg prometheus.Registerer) bool {
	if reg == nil {
		return false
	}
	p := probe{"this name is taken", "this name is free"}
	err := reg.Register(p)
	if err == nil { // it is no registry, but takes anything
		reg.Unregister(p)
		return false
	}
	return strings.Contains(err.Error(), p.first)
}

// probe is a collector with two different descriptions of one family of upstream's, so that no
// registry takes it. The error names the description at which the registry stopped. That is the
// first one if the registry has the family already, and else the second one.
type probe struct{ first, second string }

func (p probe) Describe(to chan<- *prometheus.Desc) {
	for _, help := range []string{p.first, p.second} {
		to <- prometheus.NewDesc(familyPrefix+"connections", help, nil, nil)
	}
}

func (p probe) Collect(chan<- prometheus.Metric) {}
