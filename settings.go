package rcmgr

// A configuration in the forms that operators use: a list of all values, each with its
// origin, and the difference from another configuration.

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/text"
)

// ConfigSettings is a list of the values of a configuration, each with its origin.
type ConfigSettings []ConfigSetting

// Settings returns all limits, costs and gates, each with its origin. They are in the order
// of the fields of PartialLimitConfig; services, protocols and peers are sorted by name.
// rm.Limits().Settings() returns the settings that are in force in a manager.
func (cfg ConcreteLimitConfig) Settings() ConfigSettings {
	var all []ConfigSetting
	origins := make(map[string]scopeOrigins)
	cfg.origins.each(func(place string, o scopeOrigins) { origins[place] = o })
	cfg.limits.each(func(place string, l BaseLimit) {
		from, limit := byDim(origins[place].quantities), limitsOf(l)
		for _, d := range limitOrder {
			all = append(all, ConfigSetting{place + "." + limitNames[d], valueText(d, limit[d]), from[d]})
		}
		for i, rate := range l.Rates.all() {
			if by := origins[place].rates[i]; by != OriginDefault || !rate.none() {
				all = append(all, ConfigSetting{ratePlace(place, rateOrder[i]), rate.String(), by})
			}
		}
	})
	all = append(all, cfg.limits.Costs.settings()...)
	return append(all, cfg.gateSettings()...)
}

func (c *Costs) settings() []ConfigSetting {
	if c == nil {
		c = new(Costs)
	}
	text := func(cost Cost) (string, Origin) {
		switch {
		case cost == 0:
			return "none", OriginDefault
		case cost < 0:
			return "none", OriginOverride
		}
		return strconv.FormatInt(int64(cost), 10), OriginOverride
	}
	conn, connFrom := text(c.Conn)
	stream, streamFrom := text(c.Stream)
	return []ConfigSetting{{"Costs.Conn", conn, connFrom}, {"Costs.Stream", stream, streamFrom}}
}

// gateSettings returns the settings of the gates: those of the configuration, and the
// default ones for everything that it does not set.
func (cfg *ConcreteLimitConfig) gateSettings() []ConfigSetting {
	gates, err := cfg.gateConfig(defaultGateConfig())
	if err != nil {
		return nil // New does not accept such a configuration
	}
	origins := cfg.originsOfGates()
	full := gates.gateLimits()
	all := full.settings()
	for i := range all {
		all[i].Origin = origins[all[i].Place]
	}
	if by, ok := origins[allRates]; ok {
		all = slices.DeleteFunc(all, func(s ConfigSetting) bool { return strings.HasPrefix(s.Place, allRates+".") })
		all = append(all, ConfigSetting{allRates, "as WithConnRateLimiters says", by})
	}
	return all
}

// changesShown is how many settings a line of the log names.
const changesShown = 5

// ratesInForce returns the rates of all scopes, such as "System.Rates.Conns: 10/s, burst 10": the
// first few, and how many more there are. A nil cfg has none.
func (cfg *ConcreteLimitConfig) ratesInForce() (texts []string) {
	if cfg == nil {
		return nil
	}
	cfg.limits.each(func(place string, l BaseLimit) {
		under, named := cfg.limits.unnamedOf(place)
		for i, r := range l.Rates.all() {
			if !r.none() && !(named && *r == *under.Rates.all()[i]) {
				texts = append(texts, ratePlace(place, rateOrder[i])+": "+r.String())
			}
		}
	})
	return firstFew(texts)
}

// changesFrom returns the settings that differ from those of last, gates included: the first few,
// and how many more there are. It returns none if one of the two is nil.
func (cfg *ConcreteLimitConfig) changesFrom(last *ConcreteLimitConfig, gates, lastGates *GateLimits) []string {
	if cfg == nil || last == nil {
		return nil
	}
	now, was := *cfg, *last
	now.limits.Gates, was.limits.Gates = gates, lastGates
	now.ungated, was.ungated = false, false // the gates have what that means
	return now.Settings().changed(was.Settings())
}

// changed returns the settings that differ from those before, such as
// "System.Conns: 100 -> 200": the first few, and how many more there are. A named scope that is
// missing on one side has the value of the unnamed ones there.
func (settings ConfigSettings) changed(before ConfigSettings) []string {
	was, is := before.byPlace(), settings.byPlace()
	var texts []string
	add := func(place, a, b string) {
		if a != b {
			a, b = text.Settings(place, a, b)
			texts = append(texts, printable(place)+": "+a+" -> "+b)
		}
	}
	for _, s := range settings {
		add(s.Place, was.at(s.Place), s.Value)
	}
	for _, s := range before {
		if _, ok := is[s.Place]; !ok {
			add(s.Place, s.Value, is.at(s.Place))
		}
	}
	return firstFew(texts)
}

// settingsByPlace are the values of settings by their places.
type settingsByPlace map[string]string

func (settings ConfigSettings) byPlace() settingsByPlace {
	values := make(settingsByPlace, len(settings))
	for _, s := range settings {
		values[s.Place] = s.Value
	}
	return values
}

// at returns the value at a place, or that of the unnamed scopes of its kind.
func (values settingsByPlace) at(place string) string {
	if v, ok := values[place]; ok {
		return v
	}
	if kind, rest, named := strings.Cut(place, `["`); named && !strings.HasPrefix(place, "Gates.") {
		if _, field, ok := text.CutLast(rest, `"].`); ok {
			if v, ok := values[kind+"Default."+field]; ok {
				return v
			}
		}
	}
	if strings.Contains(place, ".Rates.") {
		return Rate{}.String()
	}
	return "none"
}

// firstFew returns the first texts, and how many more there are.
func firstFew(texts []string) []string {
	if more := len(texts) - changesShown; more > 0 {
		return append(texts[:changesShown:changesShown], fmt.Sprintf("and %d more", more))
	}
	return texts
}

// WriteTable writes the settings as a table, in which bytes have units. It returns the error of w, if any.
func (settings ConfigSettings) WriteTable(w io.Writer) error {
	t := newTable(w, "Setting", "Value", "Origin")
	for _, s := range settings {
		t.row(printable(s.Place), text.Setting(s.Place, s.Value), s.Origin.String())
	}
	return t.Flush()
}

// Diff returns the values of cfg that differ from those of others, for example to write
// them to a file of overrides: the result's Build, called with others, returns cfg.
// A network that only the gates of others name is an exception. It stays, because no
// override can remove it.
func (cfg ConcreteLimitConfig) Diff(others ConcreteLimitConfig) PartialLimitConfig {
	a, b := &cfg.limits, &others.limits
	var out PartialLimitConfig
	single := (*perScope[ResourceLimits])(&out).single()
	theirs := b.single()
	for i, l := range a.single() {
		*single[i] = l.diff(*theirs[i])
	}
	out.Service = namedDiff(a.Service, a.ServiceDefault, b.Service)
	out.ServicePeer = namedDiff(a.ServicePeer, a.ServicePeerDefault, b.ServicePeer)
	out.Protocol = namedDiff(a.Protocol, a.ProtocolDefault, b.Protocol)
	out.ProtocolPeer = namedDiff(a.ProtocolPeer, a.ProtocolPeerDefault, b.ProtocolPeer)
	out.Peer = namedDiff(a.Peer, a.PeerDefault, b.Peer)
	out.Costs = a.Costs.diff(b.Costs)
	out.Gates = cfg.gatesDiff(others)
	return out
}

// diff returns the limits that differ from those below, and DefaultLimit for the rest.
func (l BaseLimit) diff(below BaseLimit) ResourceLimits {
	out := l.ToResourceLimits()
	mine, theirs := (*scopeLimits[int, int64])(&l).counts(), (*scopeLimits[int, int64])(&below).counts()
	for i, val := range out.counts() {
		if *mine[i] == *theirs[i] {
			*val = DefaultLimit
		}
	}
	if l.Memory == below.Memory {
		out.Memory = DefaultLimit64
	}
	out.Rates = l.Rates.diff(below.Rates)
	return out
}

// namedDiff returns the limits of named scopes that differ from those of the same name
// below. A name that is missing on one side has that side's limits for unnamed scopes.
func namedDiff[K comparable](named map[K]BaseLimit, unnamed BaseLimit, below map[K]BaseLimit) map[K]ResourceLimits {
	out := make(map[K]ResourceLimits)
	add := func(name K, l, under BaseLimit) {
		if differs := l.diff(under); !differs.IsDefault() {
			out[name] = differs
		}
	}
	for name, l := range named {
		under, ok := below[name]
		if !ok {
			under = unnamed
		}
		add(name, l, under)
	}
	for name, under := range below {
		if _, ok := named[name]; !ok {
			add(name, unnamed, under)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func (c *Costs) diff(below *Costs) *Costs {
	differs := func(a, b Cost) Cost {
		switch {
		case a.bytes() == b.bytes():
			return 0
		case a.bytes() == 0:
			return NoCost
		}
		return a
	}
	var a, b Costs
	if c != nil {
		a = *c
	}
	if below != nil {
		b = *below
	}
	out := Costs{differs(a.Conn, b.Conn), differs(a.Stream, b.Stream)}
	if out == (Costs{}) {
		return nil
	}
	return &out
}

// gatesDiff returns the values of the gates that differ from those of others.
func (cfg *ConcreteLimitConfig) gatesDiff(others ConcreteLimitConfig) *GateLimits {
	mine, err := cfg.gateConfig(defaultGateConfig())
	theirs, err2 := others.limits.Gates.config(defaultGateConfig())
	if err != nil || err2 != nil {
		return cfg.limits.Gates // left as it is, so that New reports what is wrong with it
	}
	a, b := mine.gateLimits(), theirs.gateLimits()
	out := GateLimits{
		Subnets: SubnetLimits(listsDiff(gateLists[LimitVal](a.Subnets), gateLists[LimitVal](b.Subnets))),
		Rate:    RateLimits(listsDiff(gateLists[ConnRate](a.Rate), gateLists[ConnRate](b.Rate))),
	}
	out.DialRate = RateLimits(listsDiff(gateLists[ConnRate](a.DialRate), gateLists[ConnRate](b.DialRate)))
	out.StreamRate = RateLimits(listsDiff(gateLists[ConnRate](a.StreamRate), gateLists[ConnRate](b.StreamRate)))
	if *a.Outbound != *b.Outbound {
		out.Outbound = a.Outbound
	}
	if reflect.ValueOf(out).IsZero() {
		return nil
	}
	return &out
}

func listsDiff[V comparable](a, b gateLists[V]) (out gateLists[V]) {
	for f := range ip.Families {
		if levels := *a.perSubnet(f); !maps.Equal(levels, *b.perSubnet(f)) {
			*out.perSubnet(f) = levels
		}
	}
	for n, v := range a.Networks {
		if v != b.Networks[n] {
			if out.Networks == nil {
				out.Networks = make(map[netip.Prefix]V)
			}
			out.Networks[n] = v
		}
	}
	return out
}
