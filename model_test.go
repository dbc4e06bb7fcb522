package rcmgr

// The reference model: what a manager decides, without a thought for speed.
// One mutex, no stripes, no credit, one number for each thing that is held.
// scope_test.go asks it and the engine the same questions.

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// answer is what a request came to, so that two answers can be compared.
type answer struct {
	outcome  modelOutcome
	asked    string // the scope to which the request was made
	scope    string // the one that refused
	resource Resource
	dir      network.Direction
	current  int64
	attempt  int64
	limit    int64
	priority uint8
	cause    Cause
	retry    int64 // when the rate that refused has its next token
}

type modelOutcome string

const (
	yes     modelOutcome = "admitted"
	limited modelOutcome = "over a limit"
	closed  modelOutcome = "closed"
	misused modelOutcome = "misused"
)

// The places above a connection or stream, in the order of checks.
const (
	atPeer = iota
	atProtocolPeer
	atServicePeer
	atProtocol
	atService
	atTransient
	atSystem
	numPlaces
)

// modelScope is any scope: one that is shared, a peer, a connection, a stream
// or a span.
type modelScope struct {
	name    string
	limit   *amounts    // nil: the owner's
	owner   *modelScope // of a span
	above   [numPlaces]*modelScope
	self    []item // a connection or stream itself
	use     amounts
	own     int64 // bytes reserved at this very scope
	done    bool
	refs    int          // connections, streams and spans that stand here
	sticky  bool         // its limit was set by hand
	inTrans [numDims]int // of a peer: its streams in transient, by direction
	friends int          // of a peer: its connections that the allowlist means
	far     modelFar
	trusted bool
	rates   Rates
	owed    [numDims]int64 // how long the buckets of the rates take to be full, from the time below
	owedAt  int64
}

// modelFar is what the allowlist says of the far end of a connection.
type modelFar struct {
	open  bool    // everybody there is allowlisted
	named peer.ID // this peer is
}

type model struct {
	mu        sync.Mutex
	conf      *perScope[BaseLimit]
	admission Admission
	newcomers bool
	closed    bool
	bugs      uint64                 // callers' bugs
	late      uint64                 // releases at scopes that are done
	scopes    map[string]*modelScope // those on which others stand, by name
	observed  map[Kind]bool          // whose limits refuse nothing
	would     map[modelWould]int     // what they would have refused
	now       func() int64           // the time of the rates; nil stands still
	// ratedByHand: SetLimit has set a rate.
	ratedByHand bool
	earmarks    []modelEarmark
}

// modelEarmark is a part of each limit of system and transient, in percent, and those that it is
// kept for.
type modelEarmark struct {
	percent   int64
	peers     []peer.ID
	friends   bool
	protocols []string
}

// modelAsker is what is known of those who ask.
type modelAsker struct {
	peer     *modelScope // nil: nothing is known yet
	protocol string
	noneYet  bool // the protocol is not known
	conn     bool // it asks for a connection, which has none
}

// isFor reports whether an earmark is for those who ask, and may whether it may be.
func (e *modelEarmark) isFor(a *modelAsker) (is, may bool) {
	for _, p := range e.peers {
		is = is || a.peer.name == "peer:"+p.String()
	}
	is = is || e.friends && a.peer.friends > 0 || slices.Contains(e.protocols, a.protocol)
	may = is || len(e.protocols) > 0 && (a.noneYet || a.conn && len(e.peers) == 0 && !e.friends)
	return is, may
}

// marked reports whether some earmark is for those who ask, and returns what of a limit is kept
// from them.
func (m *model) marked(a *modelAsker, limit int64) (any bool, kept int64) {
	for i := range m.earmarks {
		e := &m.earmarks[i]
		is, may := e.isFor(a)
		if any = any || is; !may {
			hi, lo := bits.Mul64(uint64(limit), uint64(e.percent))
			q, _ := bits.Div64(hi, lo, 100)
			kept += int64(q)
		}
	}
	return any, kept
}

// unmarked is the most that system or transient may hold of d for the sake of earmarks.
func (m *model) unmarked(r *modelRequest, s *modelScope, d dim) int64 {
	limit := s.limitOf(d)
	if s.name == "transient" && d == dimStreamsOut {
		limit = min(limit, m.mostInTransient(d))
	}
	if s.kind() > KindTransient || r.asker.peer == nil || r.beyond && m.observed[s.kind()] || isUnlimited(d, limit) ||
		s.name == "transient" && (resourceOf[d] == ResourceConnection || resourceOf[d] == ResourceFD) {
		return math.MaxInt64
	}
	_, kept := m.marked(&r.asker, limit)
	return limit - kept
}

// modelWould is what would have been refused, and why.
type modelWould struct {
	kind  Kind
	d     dim
	cause Cause
}

func newModel(conf *perScope[BaseLimit], a Admission, newcomers bool) *model {
	return &model{conf: conf, admission: a, newcomers: newcomers, scopes: map[string]*modelScope{},
		observed: map[Kind]bool{}, would: map[modelWould]int{}}
}

// at returns the scope of a name and makes it where there is none.
func (m *model) at(name string, limit BaseLimit) *modelScope {
	s := m.scopes[name]
	if s == nil {
		l := limitsOf(&limit)
		s = &modelScope{name: name, limit: &l, rates: limit.Rates}
		switch name {
		case "system", "allowlistedSystem":
		case "allowlistedTransient":
			s.above[atSystem] = m.at("allowlistedSystem", m.conf.AllowlistedSystem)
		default:
			s.above[atSystem] = m.system()
		}
		m.scopes[name] = s
	}
	return s
}

func (m *model) system() *modelScope    { return m.at("system", m.conf.System) }
func (m *model) transient() *modelScope { return m.at("transient", m.conf.Transient) }
func (m *model) peer(p peer.ID) *modelScope {
	return m.at("peer:"+p.String(), orElse(m.conf.Peer, p, m.conf.PeerDefault))
}
func (m *model) protocol(id string) *modelScope {
	return m.at("protocol:"+id, orElse(m.conf.Protocol, protocol.ID(id), m.conf.ProtocolDefault))
}
func (m *model) service(id string) *modelScope {
	return m.at("service:"+id, orElse(m.conf.Service, id, m.conf.ServiceDefault))
}

func orElse[K comparable](limits map[K]BaseLimit, key K, otherwise BaseLimit) BaseLimit {
	if l, ok := limits[key]; ok {
		return l
	}
	return otherwise
}

// line is the scopes that a reservation at s touches, in the order of checks.
// It ends after an owner that is done.
func (s *modelScope) line() (line []*modelScope) {
	root := s
	for ; s != nil; s = s.owner {
		line, root = append(line, s), s
		if s.done {
			return line
		}
	}
	for _, a := range root.above {
		if a != nil {
			line = append(line, a)
		}
	}
	return line
}

// limits returns the limit that s has or follows; none if an owner is done, which refuses
// for it.
func (s *modelScope) limits() *amounts {
	for ; s.limit == nil; s = s.owner {
		if s.owner.done {
			return nil
		}
	}
	return s.limit
}

func (s *modelScope) limitOf(d dim) int64 {
	if limits := s.limits(); limits != nil {
		return limits[d]
	}
	return math.MaxInt64
}

func (m *model) Limit(s *modelScope) (l BaseLimit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if limits := s.limits(); limits != nil && !s.done {
		l = limits.baseLimit()
		l.Rates = s.rates
	}
	return l
}

func (s *modelScope) held() []item {
	if s.use[dimMemory] > 0 {
		return append([]item{{dimMemory, s.use[dimMemory]}}, s.self...)
	}
	return s.self
}

// modelRequest is what is asked, and by whom.
type modelRequest struct {
	by       *modelScope
	items    []item
	priority uint8
	crowding bool
	beyond   bool // the limits that are only observed
	asker    modelAsker
	stands   bool // in the system scope already, and learns who asks
	// enters has the scopes whose rates are asked, and early those of which limits are asked
	// before the rates.
	enters, early []*modelScope
}

// bound is the most that a scope may hold after the request.
func (m *model) bound(r *modelRequest, s *modelScope, d dim) (bound int64, cause Cause) {
	limit := s.limitOf(d)
	switch {
	case r.beyond && m.observed[s.kind()]:
		return math.MaxInt64, CauseLimit
	case d == dimMemory && m.admission == AdmissionLinear:
		if limit == math.MaxInt64 {
			return limit, CauseLimit
		}
		return fraction(limit, 2*(1+uint64(r.priority))), CauseLimit
	case d == dimMemory && m.admission == AdmissionGraded:
		return fraction(limit, 257+uint64(r.priority)), CauseLimit
	case d == dimMemory:
		return fraction(limit, 2*min(256, 128+uint64(r.priority))), CauseLimit
	case s.name == "transient" && (d == dimStreamsIn || d == dimStreamsOut):
		most := m.mostInTransient(d)
		switch {
		case s.use[d] >= limit:
			return limit, CauseLimit
		case r.crowding && most-most/4 < limit:
			return most - most/4, CauseCrowding
		case most < limit:
			return most, CauseCrowding
		}
	}
	return limit, CauseLimit
}

// mostInTransient is how many streams in one direction transient may hold: outbound ones
// leave a quarter of all to inbound ones, unless those may not be so many.
func (m *model) mostInTransient(d dim) int64 {
	limit := m.transient().limit
	if d == dimStreamsIn || !m.newcomers {
		return limit[d]
	}
	return min(limit[d], max(limit[dimStreams]-limit[dimStreams]/4, limit[dimStreams]-limit[dimStreamsIn]))
}

// fraction is limit × of512 / 512.
func fraction(limit int64, of512 uint64) int64 {
	hi, lo := bits.Mul64(uint64(limit), of512)
	q, _ := bits.Div64(hi, lo, 512)
	return int64(q)
}

// kind returns the class of a scope; that of a span is its owner's.
func (s *modelScope) kind() Kind {
	for s.owner != nil {
		s = s.owner
	}
	name, rest, _ := strings.Cut(s.name, ":")
	if strings.Contains(rest, ".peer:") {
		name += "-peer"
	}
	return Kind(slices.Index(kindNames[:], name))
}

// take decides a request, and charges it to all of the line or to none: by all
// limits, and if they refuse it, without those that are only observed.
func (m *model) take(r *modelRequest, line ...*modelScope) answer {
	a, _ := m.takeAny(r, line)
	return a
}

// takeAny takes a request along the first of some lines that admits it, and returns
// along which.
func (m *model) takeAny(r *modelRequest, lines ...[]*modelScope) (a answer, along int) {
	for _, r.beyond = range []bool{false, true} {
		first := a
		for i, line := range lines {
			if len(r.early) == 1 && r.early[0] == r.by { // it opens
				r.enters = line[1:]
			}
			if a = m.takeOnce(r, line...); a.outcome == limited {
				continue
			}
			if a.outcome == yes && r.beyond {
				m.would[first.would()]++
			}
			return a, i
		}
	}
	return a, 0
}

// would returns what was refused, and why.
func (a answer) would() modelWould {
	s := modelScope{name: a.scope}
	for name, _, ok := strings.Cut(s.name, ".span"); ok; name, _, ok = strings.Cut(s.name, ".span") {
		s.name = name
	}
	w := modelWould{kind: s.kind(), cause: a.cause}
	for d := range numDims {
		if resourceOf[d] == a.resource && directionOf[d] == a.dir {
			w.d = d
		}
	}
	return w
}

func (m *model) takeOnce(r *modelRequest, line ...*modelScope) answer {
	if a := m.askStanding(r); a.outcome != yes {
		return a
	}
	early := *r // for the limits that are asked first, it does not matter which peer asks
	early.asker = modelAsker{}
	if a := m.ask(&early, r.early...); a.outcome != yes {
		return a
	}
	if a := m.lacksToken(r); a.outcome != yes {
		return a
	}
	if a := m.ask(r, line...); a.outcome != yes {
		return a
	}
	charge(r.items, 1, line...)
	for _, s := range r.enters {
		m.takeTokens(r, s)
	}
	return answer{outcome: yes}
}

// askStanding asks the earmarks of the system scope for what stands there already.
func (m *model) askStanding(r *modelRequest) answer {
	s := m.system()
	for _, it := range r.items {
		most := m.unmarked(r, s, it.d)
		if !r.stands || it.d == dimMemory || s.use[it.d] <= most {
			continue
		}
		cause := CauseEarmark
		if s.use[it.d] > s.limitOf(it.d) {
			cause = CauseLimit
		}
		if most < s.limitOf(it.d) {
			return answer{limited, r.by.name, s.name, resourceOf[it.d], directionOf[it.d],
				s.use[it.d] - it.n, it.n, s.limitOf(it.d), r.priority, cause, 0}
		}
	}
	return answer{outcome: yes}
}

// ask asks the limits of a line.
func (m *model) ask(r *modelRequest, line ...*modelScope) answer {
	for _, s := range line {
		if s == nil {
			continue
		}
		if s.done || m.closed {
			return answer{outcome: closed}
		}
		for _, it := range r.items {
			bound, cause := m.bound(r, s, it.d)
			if marked := m.unmarked(r, s, it.d); marked < bound {
				if it.n <= bound-s.use[it.d] {
					cause = CauseEarmark
				}
				bound = marked
			}
			if it.n > bound-s.use[it.d] {
				return answer{limited, r.by.name, s.name, resourceOf[it.d], directionOf[it.d],
					s.use[it.d], it.n, s.limitOf(it.d), r.priority, cause, 0}
			}
		}
	}
	return answer{outcome: yes}
}

// bucket returns the time from one token to the next, and that from empty to full. Both are 0
// if there is no rate.
func (s *modelScope) bucket(d dim) (interval, capacity int64) {
	for i, rate := range s.rates.all() {
		if rateOrder[i] == d && *rate != (Rate{}) {
			interval = int64(1e9 / rate.PerSecond) // the tests have rates of whole nanoseconds
			return interval, interval * max(1, int64(rate.Burst))
		}
	}
	return 0, 0
}

// pass lets time go by for the buckets of a scope.
func (m *model) pass(s *modelScope) {
	if m.now == nil {
		return
	}
	now := m.now()
	for d := range s.owed {
		s.owed[d] = max(0, s.owed[d]-(now-s.owedAt))
	}
	s.owedAt = now
}

// lacksToken returns the refusal by the first rate without a token.
func (m *model) lacksToken(r *modelRequest) answer {
	for _, s := range r.enters {
		if s == nil || r.beyond && m.observed[s.kind()] {
			continue
		}
		m.pass(s)
		for _, it := range r.items {
			interval, capacity := s.bucket(it.d)
			if interval == 0 || s.owed[it.d]+interval <= capacity {
				continue
			}
			s.owed[it.d] = min(s.owed[it.d], capacity)
			burst := capacity / interval
			next := s.owedAt + s.owed[it.d] + interval - capacity
			return answer{limited, r.by.name, s.name, resourceOf[it.d], directionOf[it.d], burst, 1, burst, r.priority, CauseRate, next}
		}
	}
	return answer{outcome: yes}
}

func (m *model) takeTokens(r *modelRequest, s *modelScope) {
	if s == nil {
		return
	}
	m.pass(s)
	for _, it := range r.items {
		if interval, capacity := s.bucket(it.d); interval > 0 {
			s.owed[it.d] = min(s.owed[it.d]+interval, capacity)
		}
	}
}

// tokens returns how many tokens of each rate of a scope are left.
func (m *model) tokens(s *modelScope) (left []RateState) {
	m.pass(s)
	for i, d := range rateOrder {
		if interval, capacity := s.bucket(d); interval > 0 {
			rate := s.rates.all()[i]
			left = append(left, RateState{limitNames[d], rate.PerSecond, capacity / interval, max(0, capacity-s.owed[d]) / interval})
		}
	}
	return left
}

func charge(items []item, sign int64, line ...*modelScope) {
	for _, s := range line {
		for _, it := range items {
			if s != nil {
				s.use[it.d] += sign * it.n
			}
		}
	}
}

func selfOf(kind Kind, dir network.Direction, fd bool) []item {
	in, out, both := dimStreamsIn, dimStreamsOut, dimStreams
	if kind == KindConn {
		in, out, both = dimConnsIn, dimConnsOut, dimConns
	}
	if dir != network.DirInbound {
		in = out
	}
	if fd {
		return []item{{in, 1}, {both, 1}, {dimFD, 1}}
	}
	return []item{{in, 1}, {both, 1}}
}

func (m *model) OpenConnection(dir network.Direction, fd bool, far modelFar) (*modelScope, answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	limit := limitsOf(&m.conf.Conn)
	c := &modelScope{name: "conn", limit: &limit, self: selfOf(KindConn, dir, fd), far: far}
	return m.open(c, nil, far.open || far.named != "")
}

func (m *model) OpenStream(p peer.ID, dir network.Direction) (*modelScope, answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	limit := limitsOf(&m.conf.Stream)
	s := &modelScope{name: "stream", limit: &limit, self: selfOf(KindStream, dir, false)}
	ps := m.peer(p)
	return m.open(s, ps, ps.friends > 0)
}

func (m *model) open(s, ps *modelScope, fallBack bool) (*modelScope, answer) {
	r := &modelRequest{by: s, items: s.self, priority: 255}
	if ps != nil {
		dir := s.self[0].d
		r.asker = modelAsker{peer: ps, noneYet: true}
		known := modelAsker{peer: ps}
		any, _ := m.marked(&known, 0)
		r.crowding = !any && m.newcomers && ps.inTrans[dir] > 0 && int64(ps.inTrans[dir]) >= m.mostInTransient(dir)/4
	}
	standard := [numPlaces]*modelScope{atPeer: ps, atTransient: m.transient(), atSystem: m.system()}
	places := [][numPlaces]*modelScope{standard}
	if fallBack {
		standard[atTransient] = m.at("allowlistedTransient", m.conf.AllowlistedTransient)
		standard[atSystem] = m.at("allowlistedSystem", m.conf.AllowlistedSystem)
		places = append(places, standard)
	}
	var lines [][]*modelScope
	for _, s.above = range places {
		lines = append(lines, s.line())
	}
	r.early = []*modelScope{s}
	a, along := m.takeAny(r, lines...)
	if a.outcome == yes {
		s.above = places[along]
		s.stand(1)
	}
	return s, a
}

// stand counts a connection or stream where it stands now, or takes it away.
func (s *modelScope) stand(n int) {
	for _, a := range s.above {
		if a != nil {
			a.refs += n
		}
	}
	ps, tr := s.above[atPeer], s.above[atTransient]
	if ps != nil && tr != nil && tr.name == "transient" {
		ps.inTrans[s.self[0].d] += n
	}
	if s.trusted {
		ps.friends += n
	}
}

func (m *model) SetPeer(c *modelScope, p peer.ID) answer {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a, ok := m.mayMove(c, atPeer); !ok {
		return a
	}
	ps := m.peer(p)
	trusted := c.far.open || c.far.named == p
	r := &modelRequest{by: c, items: c.held(), priority: 255, asker: modelAsker{peer: ps, conn: true}}
	r.stands = !trusted && c.above[atSystem].name == "system"
	system, toCheck := c.above[atSystem], []*modelScope{ps}
	if !trusted && system.name == "allowlistedSystem" {
		system = m.system()
		toCheck = []*modelScope{system, ps}
		r.early = []*modelScope{system, m.transient()}
		r.enters = []*modelScope{system}
	}
	r.enters = append(r.enters, ps)
	if a := m.take(r, toCheck...); a.outcome != yes {
		return a
	}
	charge(r.items, -1, toCheck...) // it was only asked
	m.move(c, [numPlaces]*modelScope{atPeer: ps, atSystem: system}, trusted)
	return answer{outcome: yes}
}

// mayMove reports whether a scope may be attached at a place.
func (m *model) mayMove(s *modelScope, at int) (answer, bool) {
	switch {
	case s.done || m.closed:
		return answer{outcome: closed}, false
	case s.above[at] != nil:
		return answer{outcome: misused}, false
	}
	return answer{}, true
}

// move puts a connection or stream somewhere else.
func (m *model) move(s *modelScope, to [numPlaces]*modelScope, trusted bool) {
	s.stand(-1)
	charge(s.held(), -1, s.above[:]...)
	s.above, s.trusted = to, trusted
	charge(s.held(), 1, s.above[:]...)
	s.stand(1)
}

func (m *model) SetProtocol(s *modelScope, id string) answer {
	return m.attach(s, atProtocol, atProtocolPeer, id)
}

func (m *model) SetService(s *modelScope, id string) answer {
	return m.attach(s, atService, atServicePeer, id)
}

func (m *model) attach(s *modelScope, place, pairPlace int, id string) answer {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a, ok := m.mayMove(s, place); !ok {
		return a
	}
	if id == "" || place == atService && s.above[atProtocol] == nil {
		return answer{outcome: misused}
	}
	to, shared, pairLimit := s.above, m.protocol, orElse(m.conf.ProtocolPeer, protocol.ID(id), m.conf.ProtocolPeerDefault)
	if place == atService {
		shared, pairLimit = m.service, orElse(m.conf.ServicePeer, id, m.conf.ServicePeerDefault)
	} else {
		to[atTransient] = nil
	}
	to[place] = shared(id)
	to[pairPlace] = m.at(to[place].name+"."+s.above[atPeer].name, pairLimit)
	r := &modelRequest{by: s, items: s.held(), priority: 255}
	if place == atProtocol && s.above[atSystem].name == "system" {
		r.asker, r.stands = modelAsker{peer: s.above[atPeer], protocol: id}, true
	}
	r.enters = []*modelScope{to[place], to[pairPlace]}
	if a := m.take(r, to[place], to[pairPlace]); a.outcome != yes {
		return a
	}
	charge(r.items, -1, to[place], to[pairPlace]) // it was only asked
	m.move(s, to, false)
	return answer{outcome: yes}
}

func (m *model) ReserveMemory(s *modelScope, n int, priority uint8) answer {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n < 0 {
		m.bugs++
		if s.done || m.closed && s.onTree() {
			return answer{outcome: closed}
		}
		return answer{outcome: misused}
	}
	r := &modelRequest{by: s, items: []item{{dimMemory, int64(n)}}, priority: priority}
	root := s
	for root.owner != nil {
		root = root.owner
	}
	if root.kind() == KindPeer {
		r.asker.peer = root
	} else if root.onTree() {
		r.asker = modelAsker{peer: root.above[atPeer], noneYet: root.above[atTransient] != nil}
		if p := root.above[atProtocol]; p != nil {
			r.asker.protocol = strings.TrimPrefix(p.name, "protocol:")
		}
	}
	a := m.take(r, s.line()...)
	if a.outcome == yes {
		s.own += int64(n)
	}
	return a
}

// onTree reports whether s is a connection, a stream or a span.
func (s *modelScope) onTree() bool { return s.owner != nil || s.self != nil }

func (m *model) ReleaseMemory(s *modelScope, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	give := max(0, min(int64(n), s.own))
	switch {
	case give == int64(n):
	case s.done:
		m.late++
	default:
		m.bugs++
	}
	s.own -= give
	s.give(give)
}

// give takes n bytes from s and what is above it, up to an owner that is done.
func (s *modelScope) give(n int64) {
	line := s.line()
	if line[len(line)-1].done {
		line = line[:len(line)-1]
	}
	charge([]item{{dimMemory, n}}, -1, line...)
}

func (m *model) BeginSpan(owner *modelScope) (*modelScope, answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if owner.done || m.closed {
		return nil, answer{outcome: closed}
	}
	owner.refs++
	return &modelScope{name: owner.name + ".span", owner: owner}, answer{outcome: yes}
}

func (m *model) Done(s *modelScope) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.done {
		return
	}
	if s.owner != nil {
		s.owner.refs--
		s.give(s.use[dimMemory])
	} else {
		charge(s.held(), -1, s.above[:]...)
		s.stand(-1)
	}
	s.use, s.own, s.done = amounts{}, 0, true
}

func (m *model) SetLimit(s *modelScope, limit BaseLimit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := limitsOf(&limit)
	for _, v := range l {
		if v < 0 {
			m.bugs++
			return
		}
	}
	s.limit, s.sticky = &l, true
	if !s.onTree() {
		m.setRates(s, limit.Rates)
		m.ratedByHand = m.ratedByHand || limit.Rates != Rates{}
	}
}

// setRates replaces the rates of a scope. From then on a bucket lacks at most what it can hold. For
// a peer and its parts, this begins when the rate first refuses.
func (m *model) setRates(s *modelScope, r Rates) {
	s.rates = r
	m.pass(s)
	for d := range s.owed {
		if interval, capacity := s.bucket(dim(d)); interval > 0 && !s.ofPeer() {
			s.owed[d] = min(s.owed[d], capacity)
		}
	}
}

// ofPeer reports whether a scope is a peer, or its part of a service or protocol.
func (s *modelScope) ofPeer() bool { return strings.Contains(s.name, "peer:") }

// SetLimits puts limits in force that differ from those before in rates only.
func (m *model) SetLimits(conf *perScope[BaseLimit]) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conf = conf
	for name, s := range m.scopes {
		if !s.sticky {
			m.setRates(s, m.limitFor(name).Rates)
		}
	}
}

// limitFor returns the limit that the configuration has for a scope.
func (m *model) limitFor(name string) BaseLimit {
	kind, rest, _ := strings.Cut(name, ":")
	id, _, part := strings.Cut(rest, ".peer:")
	switch kind {
	case "system":
		return m.conf.System
	case "transient":
		return m.conf.Transient
	case "allowlistedSystem":
		return m.conf.AllowlistedSystem
	case "allowlistedTransient":
		return m.conf.AllowlistedTransient
	case "peer":
		i := slices.IndexFunc(testPeers, func(p peer.ID) bool { return p.String() == rest })
		return orElse(m.conf.Peer, testPeers[i], m.conf.PeerDefault)
	case "protocol":
		if part {
			return orElse(m.conf.ProtocolPeer, protocol.ID(id), m.conf.ProtocolPeerDefault)
		}
		return orElse(m.conf.Protocol, protocol.ID(id), m.conf.ProtocolDefault)
	}
	if part {
		return orElse(m.conf.ServicePeer, id, m.conf.ServicePeerDefault)
	}
	return orElse(m.conf.Service, id, m.conf.ServiceDefault)
}

func (m *model) Stat(s *modelScope) network.ScopeStat {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.done {
		return network.ScopeStat{}
	}
	a := s.use
	for _, it := range s.self {
		a[it.d] = it.n
	}
	return a.stat()
}

// rated reports whether any scope may have a rate.
func (m *model) rated() (any bool) {
	m.conf.each(func(_ string, l BaseLimit) { any = any || l.Rates != Rates{} })
	return any || m.ratedByHand
}

// reap forgets what is not used, and owes no token. While there are no rates, and after Close,
// nothing is owed.
func (m *model) reap() {
	rated := m.rated() && !m.closed
	forget := func(parts bool) {
		for name, s := range m.scopes {
			m.pass(s)
			if strings.Contains(name, ".peer:") == parts && strings.Contains(name, ":") &&
				s.refs == 0 && !s.sticky && s.use == (amounts{}) &&
				(!rated || s.owed == (amounts{}) && !m.hasParts(name)) {
				delete(m.scopes, name)
			}
		}
	}
	forget(true)
	forget(false)
}

// hasParts reports whether there is a part of a peer or of a service or protocol that owes tokens.
func (m *model) hasParts(name string) bool {
	for other, s := range m.scopes {
		if strings.HasPrefix(other, name+".peer:") || strings.HasSuffix(other, "."+name) {
			if s.owed != (amounts{}) {
				return true
			}
		}
	}
	return false
}

func (m *model) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
}

func (a answer) String() string {
	if a.outcome != limited {
		return string(a.outcome)
	}
	return fmt.Sprintf("refused: %s asked %s for %d %v of %v at priority %d: holds %d of %d (%v)",
		a.asked, a.scope, a.attempt, a.dir, a.resource, a.priority, a.current, a.limit, a.cause)
}
