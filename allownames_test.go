package rcmgr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// What hosts have is a resolver as it is.
var _ AllowlistResolver = swarm.ResolverFromMaDNS{}.Resolver

// nameServer is a resolver with answers by question. Those that it does not know are empty.
type nameServer struct {
	mu      sync.Mutex
	answers map[string][]string
	errs    map[string]error
	ends    map[string]func(context.Context) // called before it answers
	asked   []string
	running int
	most    int // that have run at once
}

func serving(answers map[string][]string) *nameServer { return &nameServer{answers: answers} }

func (s *nameServer) Resolve(ctx context.Context, ma multiaddr.Multiaddr) (all []multiaddr.Multiaddr, err error) {
	question := ma.String()
	s.mu.Lock()
	s.asked = append(s.asked, question)
	s.running++
	s.most = max(s.most, s.running)
	end := s.ends[question]
	s.mu.Unlock()
	if end != nil {
		end(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	for _, text := range s.answers[question] {
		all = append(all, multiaddr.StringCast(text))
	}
	return all, errors.Join(s.errs[question], ctx.Err())
}

// say changes the answers while the server is in use.
func (s *nameServer) say(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// questions returns how often a question was asked.
func (s *nameServer) questions(question string) (n int) {
	s.say(func() {
		for _, asked := range s.asked {
			if asked == question {
				n++
			}
		}
	})
	return n
}

// hang waits until the lookup is cancelled.
func hang(ctx context.Context) { <-ctx.Done() }

// naming makes a manager with names on its allowlist. Its first lookups have ended, unless they
// take time.
func naming(t *testing.T, s AllowlistResolver, names ...string) *Manager {
	t.Helper()
	m := newManager(t, unlimitedConf(), WithAllowlistStrings(names, false), WithAllowlistResolver(s, time.Minute))
	synctest.Wait()
	return m
}

// lookedUp returns the state of a name on the allowlist.
func lookedUp(t *testing.T, m *Manager, entry string) AllowlistName {
	t.Helper()
	all := m.Snapshot().Allowlist.Names
	i := slices.IndexFunc(all, func(n AllowlistName) bool { return n.Entry == entry })
	require.GreaterOrEqual(t, i, 0, "%v is not in %v", entry, all)
	return all[i]
}

// pass lets time go by, and waits for the lookups that are due by then.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// aMinute is longer than the time to the next lookup of a manager made by naming.
const aMinute = 67 * time.Second

func TestANameAdmitsTheAddressesOfItsAnswer(t *testing.T) {
	const a, b, name = "/p2p/" + peerA, "/p2p/" + peerB, "/dnsaddr/example.com"
	for _, c := range []struct {
		entry   string
		answers map[string][]string
		admits  []string
		leftOut string
	}{
		{"/dns4/example.com", map[string][]string{"/dns4/example.com": {"/ip4/192.0.2.1", "/ip4/10.0.0.1"}},
			[]string{"/ip4/10.0.0.1", "/ip4/192.0.2.1"}, ""},
		{"/dns/example.com/tcp/4001/ws", map[string][]string{"/dns/example.com": {"/ip4/192.0.2.1", "/ip6/2001:db8::1", "/ip4/192.0.2.1"}},
			[]string{"/ip4/192.0.2.1", "/ip6/2001:db8::1"}, ""},
		{"/dns6/example.com" + a, map[string][]string{"/dns6/example.com": {"/ip6/2001:db8::1"}},
			[]string{"/ip6/2001:db8::1" + a}, ""},
		// The family is the entry's, whatever a resolver returns. Mapped addresses are IPv4.
		{"/dns4/example.com", map[string][]string{"/dns4/example.com": {"/ip6/2001:db8::1", "/ip6/::ffff:192.0.2.1"}},
			[]string{"/ip4/192.0.2.1"}, "is not an IPv4 address"},
		{"/dns6/example.com", map[string][]string{"/dns6/example.com": {"/ip4/192.0.2.2", "/ip6/64:ff9b::c000:201"}},
			[]string{"/ip4/192.0.2.1"}, "is not an IPv6 address"},
		// Only the peer that is meant.
		{name + a, map[string][]string{name + a: {"/ip4/192.0.2.1/tcp/4001" + a, "/ip4/192.0.2.2/tcp/4001" + b, "/ip4/192.0.2.3"}},
			[]string{"/ip4/192.0.2.1" + a}, ""},
		{name, map[string][]string{name: {"/ip4/192.0.2.1/tcp/4001" + a, "/ip4/192.0.2.2/udp/1/quic-v1" + b, "/ip4/192.0.2.3"}},
			[]string{"/ip4/192.0.2.1" + a, "/ip4/192.0.2.2" + b, "/ip4/192.0.2.3"}, ""},
		{"/dns4/example.com" + a, map[string][]string{"/dns4/example.com": {"/ip4/192.0.2.1" + b, "/ip4/192.0.2.2"}},
			[]string{"/ip4/192.0.2.2" + a}, ""},
		// Names in an answer are looked up, for the same peer.
		{name, map[string][]string{
			name:                         {"/dnsaddr/a.example.com" + a, "/dns4/b.example.com/tcp/443/wss" + b},
			"/dnsaddr/a.example.com" + a: {"/ip4/192.0.2.1/tcp/4001" + a, "/ip4/192.0.2.9" + b},
			"/dns4/b.example.com":        {"/ip4/192.0.2.2"},
		}, []string{"/ip4/192.0.2.1" + a, "/ip4/192.0.2.2" + b}, ""},
		// What no name may choose.
		{name, map[string][]string{name: {"/ip4/0.0.0.0/ipcidr/0", "/ip6/::ffff:0.0.0.0/ipcidr/96", "/ip4/192.0.2.1"}}, []string{"/ip4/192.0.2.1"}, "is a network"},
		{name, map[string][]string{name: {a, "/ip4/192.0.2.1" + a}}, []string{"/ip4/192.0.2.1" + a}, "has no address"},
		{name, map[string][]string{name: {"/ip4/192.0.2.7/tcp/1" + b + "/p2p-circuit" + a, "/ip4/192.0.2.1"}}, []string{"/ip4/192.0.2.1"}, "is relayed"},
		{name, map[string][]string{name: {"/memory/1", "/ip4/192.0.2.1/ip4/192.0.2.2", "/ip4/192.0.2.1"}}, []string{"/ip4/192.0.2.1"}, "expected an IP address"},
		// Names that stand for themselves, and for each other.
		{name, map[string][]string{name: {name, "/ip4/192.0.2.1"}}, []string{"/ip4/192.0.2.1"}, "at most 4 deep"},
		{name, map[string][]string{name: {"/dnsaddr/a.example.com", "/dnsaddr/a.example.com"}, "/dnsaddr/a.example.com": {"/ip4/192.0.2.1", name, name, name}},
			[]string{"/ip4/192.0.2.1"}, "at most 4 deep"},
		{"/dns4/\u2603 \x01\xff", map[string][]string{"/dns4/\u2603 \x01\xff": {"/ip4/192.0.2.1"}}, []string{"/ip4/192.0.2.1"}, ""},
	} {
		t.Run(c.entry, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := serving(c.answers)
				m := naming(t, s, c.entry)
				e, err := parseAllowlistText(c.entry)
				require.NoError(t, err)
				n := lookedUp(t, m, e.String())
				require.Equal(t, c.admits, n.Admits)
				require.Empty(t, n.Err)
				require.Equal(t, c.leftOut != "", n.LeftOut > 0, n.WhyLeftOut)
				require.Contains(t, n.WhyLeftOut, c.leftOut)
				require.LessOrEqual(t, len(s.asked), mostQuestions)

				var want Allowlist
				for _, text := range c.admits {
					require.NoError(t, want.Add(mustMA(t, text)))
				}
				requireSameLists(t, &want, m.GetAllowlist())
				require.NoError(t, m.GetAllowlist().Remove(mustMA(t, c.entry)))
				requireEmptyAllowlist(t, m.GetAllowlist())
				require.False(t, m.GetAllowlist().hasEntries())
			})
		})
	}
}

// requireSameLists fails the test if two lists do not admit the same.
func requireSameLists(t *testing.T, want, got *Allowlist) {
	t.Helper()
	networks := func(of *prefixCounts) (all []string) {
		for n := range of.All() {
			all = append(all, n.String())
		}
		slices.Sort(all)
		return all
	}
	a, b := want.view.Load(), got.view.Load()
	require.Equal(t, networks(a.open), networks(b.open))
	require.Equal(t, networks(a.named), networks(b.named))
	require.Equal(t, a.peers.Size(), b.peers.Size())
	for key, of := range a.peers.All() {
		same, _ := b.peers.Get(key)
		require.Equal(t, of.bare, same.bare)
		require.Equal(t, networks(of.at), networks(same.at))
	}
}

func TestANameIsLookedUpAgainAndTheLastAnswerStaysIfThatFails(t *testing.T) {
	const name = "/dns4/example.com"
	lines := collectLog(t, slog.LevelInfo)
	synctest.Test(t, func(t *testing.T) {
		s := serving(map[string][]string{name: {"/ip4/192.0.2.1", "/ip4/192.0.2.2"}})
		m := naming(t, s, name)
		al := m.GetAllowlist()
		allowed := func() (all []bool) {
			for _, addr := range []string{"/ip4/192.0.2.1", "/ip4/192.0.2.2", "/ip4/192.0.2.3"} {
				all = append(all, al.Allowed(mustMA(t, addr)))
			}
			return all
		}
		require.Equal(t, []bool{true, true, false}, allowed())
		first := time.Now()
		require.Equal(t, AllowlistName{Entry: name, Admits: []string{"/ip4/192.0.2.1", "/ip4/192.0.2.2"}, Answered: first}, lookedUp(t, m, name))

		s.say(func() { s.answers[name] = []string{"/ip4/192.0.2.2", "/ip4/192.0.2.3"} })
		pass(53 * time.Second)
		require.Equal(t, []bool{true, true, false}, allowed(), "not before the time")
		pass(aMinute - 53*time.Second)
		require.Equal(t, []bool{false, true, true}, allowed())
		second := lookedUp(t, m, name).Answered
		require.WithinRange(t, second, first.Add(54*time.Second), first.Add(66*time.Second))

		lines.take()
		broken := errors.New("the server is on holiday")
		s.say(func() { s.answers[name], s.errs = nil, map[string]error{name: broken} })
		pass(time.Hour)
		require.Equal(t, []bool{false, true, true}, allowed(), "the last answer stays")
		n := lookedUp(t, m, name)
		require.Equal(t, second, n.Answered)
		require.Equal(t, fmt.Sprintf("%q: %v", name, broken), n.Err)
		// After 10, 20 and 40 seconds, and then every minute.
		require.InDelta(t, 60, n.Failed, 8)
		require.EqualValues(t, n.Failed, m.Snapshot().Allowlist.FailedLookUps)
		told := lines.take()
		require.Len(t, told, 1, "only the first failure is logged")
		require.Contains(t, told[0], "ERROR")
		require.Contains(t, told[0], broken.Error())

		s.say(func() { s.errs = nil }) // an answer without addresses is a failure
		pass(aMinute)
		require.Equal(t, []bool{false, true, true}, allowed())
		require.Equal(t, "the answer has no address for the allowlist", lookedUp(t, m, name).Err)
		require.Empty(t, lines.take())

		s.say(func() { s.answers[name] = []string{"/ip4/192.0.2.1"} })
		pass(aMinute)
		require.Equal(t, []bool{true, false, false}, allowed())
		n = lookedUp(t, m, name)
		require.Equal(t, AllowlistName{Entry: name, Admits: []string{"/ip4/192.0.2.1"}, Answered: n.Answered}, n)
		told = lines.take()
		require.Len(t, told, 1)
		require.Contains(t, told[0], "looked up again")
	})
}

func TestAFailedLookUpIsRepeatedSoonAndThenLessOften(t *testing.T) {
	const name = "/dns4/example.com"
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		s := serving(nil)
		s.ends = map[string]func(context.Context){name: func(context.Context) { at = append(at, time.Now()) }}
		naming(t, s, name)
		pass(5 * time.Minute)
		require.Greater(t, len(at), 5)
		for i, seconds := range []time.Duration{10, 20, 40, 60, 60} {
			wait := seconds * time.Second
			require.WithinRange(t, at[i+1], at[i].Add(wait*9/10), at[i].Add(wait*11/10))
		}
	})
}

func TestAPartOfALookUpThatFailsKeepsTheLastAddresses(t *testing.T) {
	const name, one, two = "/dnsaddr/example.com", "/dns4/one.example.com", "/dns4/two.example.com"
	synctest.Test(t, func(t *testing.T) {
		s := serving(map[string][]string{name: {one, two}, one: {"/ip4/192.0.2.1"}, two: {"/ip4/192.0.2.2"}})
		m := naming(t, s, name)
		require.Equal(t, []string{"/ip4/192.0.2.1", "/ip4/192.0.2.2"}, lookedUp(t, m, name).Admits)
		s.say(func() {
			s.answers[one] = []string{"/ip4/192.0.2.3"}
			s.errs = map[string]error{two: errFault}
		})
		pass(aMinute)
		n := lookedUp(t, m, name)
		require.Equal(t, []string{"/ip4/192.0.2.1", "/ip4/192.0.2.2", "/ip4/192.0.2.3"}, n.Admits)
		require.Contains(t, n.Err, two)
		s.say(func() { s.errs = nil })
		pass(aMinute)
		require.Equal(t, []string{"/ip4/192.0.2.2", "/ip4/192.0.2.3"}, lookedUp(t, m, name).Admits)
	})
}

// New does not wait for a resolver that hangs, other names are looked up meanwhile, and Close
// cancels what is left.
func TestAResolverThatHangsHoldsUpNeitherOtherNamesNorNewNorClose(t *testing.T) {
	for kind, deaf := range map[string]bool{"it ends with its context": false, "it does not end": true} {
		t.Run(kind, func(t *testing.T) {
			lines := collectLog(t, slog.LevelError)
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				wait := hang
				if deaf {
					wait = func(context.Context) { <-release }
				}
				s := serving(map[string][]string{})
				s.ends = make(map[string]func(context.Context))
				var names []string
				for i := range 3 * lookUpsAtOnce {
					names = append(names, fmt.Sprintf("/dns4/hangs%d.example.com", i))
					s.ends[names[i]] = wait
				}
				names = append(names, "/dns4/example.com")
				s.answers["/dns4/example.com"] = []string{"/ip4/192.0.2.1"}
				began := time.Now()
				m := naming(t, s, names...)
				require.Equal(t, began, time.Now())
				require.True(t, m.GetAllowlist().hasEntries())
				require.Empty(t, lookedUp(t, m, names[0]).Err, "nothing is known yet")
				pass(4 * (lookUpTime + hangTime))
				require.True(t, m.GetAllowlist().Allowed(mustMA(t, "/ip4/192.0.2.1")))
				n := lookedUp(t, m, names[0])
				require.Zero(t, n.Answered)
				require.Len(t, lines.take(), len(names)-1)
				if deaf {
					require.Contains(t, n.Err, "has not returned")
					require.Equal(t, 1, s.questions(names[0]), "it is not asked again before it has returned")
				} else {
					require.Contains(t, n.Err, context.DeadlineExceeded.Error())
					require.Equal(t, lookUpsAtOnce, s.most)
					require.Greater(t, s.questions(names[0]), 1)
				}
				closing := time.Now()
				require.NoError(t, m.Close())
				require.Equal(t, closing, time.Now())
				failed := m.Snapshot().Allowlist.FailedLookUps
				close(release)
				pass(time.Hour)
				require.Equal(t, failed, m.Snapshot().Allowlist.FailedLookUps, "nothing happens after Close")
				require.Zero(t, s.running)
			})
		})
	}
}

// A resolver that was deaf once is asked again when it has returned.
func TestANameIsLookedUpAgainOnceItsResolverHasReturned(t *testing.T) {
	const name = "/dns4/example.com"
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := serving(map[string][]string{name: {"/ip4/192.0.2.1"}})
		s.ends = map[string]func(context.Context){name: func(context.Context) { <-release }}
		m := naming(t, s, name)
		pass(time.Hour)
		require.Equal(t, 1, s.questions(name))
		close(release)
		synctest.Wait()
		require.Equal(t, 2, s.questions(name))
		require.Equal(t, []string{"/ip4/192.0.2.1"}, lookedUp(t, m, name).Admits)
	})
}

// A question that hangs leaves time for the others of the same lookup.
func TestOneNameInAnAnswerThatHangsLeavesTheOthersTime(t *testing.T) {
	const name, one, two = "/dnsaddr/example.com", "/dns4/one.example.com", "/dns4/two.example.com"
	synctest.Test(t, func(t *testing.T) {
		s := serving(map[string][]string{name: {one, two}, two: {"/ip4/192.0.2.2"}})
		s.ends = map[string]func(context.Context){one: hang}
		m := naming(t, s, name)
		pass(questionTime)
		n := lookedUp(t, m, name)
		require.Equal(t, []string{"/ip4/192.0.2.2"}, n.Admits)
		require.Contains(t, n.Err, one)
	})
}

// A resolver that does not return in time is not asked the next question.
func TestALookUpWhoseTimeIsOverAsksNothingMore(t *testing.T) {
	const name, one = "/dnsaddr/example.com", "/dns4/one.example.com"
	synctest.Test(t, func(t *testing.T) {
		s := serving(map[string][]string{name: {"/ip4/192.0.2.1", one}})
		require.NoError(t, naming(t, late{s}, name).Close())
		pass(time.Hour)
		require.Equal(t, []string{name}, s.asked)
	})
}

// late answers a minute later, whatever has become of the lookup.
type late struct{ *nameServer }

func (l late) Resolve(_ context.Context, ma multiaddr.Multiaddr) ([]multiaddr.Multiaddr, error) {
	answer, err := l.nameServer.Resolve(context.Background(), ma)
	time.Sleep(time.Minute)
	return answer, err
}

func TestAResolverThatFailsStopsOnlyOneLookUp(t *testing.T) {
	const name, good = "/dns4/bad.example.com", "/dns4/example.com"
	for how, end := range endings {
		t.Run(how, func(t *testing.T) {
			text := captureLogFrom(t, slog.LevelError)
			synctest.Test(t, func(t *testing.T) {
				s := serving(map[string][]string{name: {"/ip4/192.0.2.1"}, good: {"/ip4/192.0.2.2"}})
				s.ends = map[string]func(context.Context){name: func(context.Context) { end() }}
				m := naming(t, s, name, good)
				require.NotEmpty(t, lookedUp(t, m, name).Err)
				require.Equal(t, []string{"/ip4/192.0.2.2"}, lookedUp(t, m, good).Admits)
				s.say(func() { s.ends = nil })
				pass(aMinute)
				require.Equal(t, []string{"/ip4/192.0.2.1"}, lookedUp(t, m, name).Admits)
				require.NoError(t, m.Close())
			})
			require.Equal(t, 1, strings.Count(text.String(), "a callback has failed"), text.String())
			require.Contains(t, text.String(), "*rcmgr.nameServer")
		})
	}
}

func TestWithoutAResolverANameIsAnErrorThatSaysWhatIsMissing(t *testing.T) {
	const name, want = "/dns4/example.com", `allowlist entry "/dns4/example.com": expected an IP address or a peer ID: a host name needs a resolver (see WithAllowlistResolver)`
	_, err := New(nil, WithAllowlistStrings([]string{"/ip4/192.0.2.1", name}, false))
	require.EqualError(t, err, "rcmgr: WithAllowlistStrings: line 2: "+want)
	_, err = New(nil, WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{mustMA(t, name)}))
	require.EqualError(t, err, "rcmgr: WithAllowlistedMultiaddrs: "+want)
	_, err = upstream.NewResourceManager(upstream.NewFixedLimiter(upstream.InfiniteLimits), upstream.WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{mustMA(t, name)}))
	require.Error(t, err, "as here")
	text := captureLogFrom(t, slog.LevelInfo)
	m := newManager(t, unlimitedConf(), WithAllowlistStrings([]string{name, "/ip4/192.0.2.1"}, true))
	require.Contains(t, text.String(), "line=1")
	require.Contains(t, text.String(), "needs a resolver")
	require.Contains(t, text.String(), "allowlist_entries=1 ")
	require.True(t, m.GetAllowlist().Allowed(mustMA(t, "/ip4/192.0.2.1")))
	require.EqualError(t, m.GetAllowlist().Add(mustMA(t, name)), want)
	require.EqualError(t, m.GetAllowlist().Remove(mustMA(t, name)), want)
	require.Equal(t, AllowlistState{}, m.Snapshot().Allowlist)
}

func TestNamesThatCannotMeanAnythingAreErrorsWithAResolverToo(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithAllowlistResolver(serving(nil), 0))
	for entry, want := range map[string]string{
		"/dns4/a/dns6/b":                            "two host names",
		"/dns4/a/ipcidr/24":                         "ipcidr",
		"/dns4/a/p2p/" + peerA + "/p2p-circuit":     "relayed",
		"/dnsaddr/a/p2p/" + peerA + "/p2p/" + peerB: "two peers",
	} {
		require.ErrorContains(t, m.GetAllowlist().Add(mustMA(t, entry)), want)
	}
	require.NoError(t, m.GetAllowlist().Remove(mustMA(t, "/dns4/a")), "as for an address that is not listed")
	require.False(t, m.GetAllowlist().hasEntries())
	// With an address, a name is as good as a port.
	require.NoError(t, m.GetAllowlist().Add(mustMA(t, "/dns4/a/ip4/192.0.2.1")))
	require.True(t, m.GetAllowlist().Allowed(mustMA(t, "/ip4/192.0.2.1")))
	require.Empty(t, m.Snapshot().Allowlist.Names)
}

func TestAResolverThatCannotBeUsedIsAnError(t *testing.T) {
	_, err := New(nil, WithAllowlistResolver(nil, 0))
	require.EqualError(t, err, "rcmgr: WithAllowlistResolver: the resolver is nil")
	for _, every := range []time.Duration{-time.Minute, 1, 9 * time.Second} {
		_, err = New(nil, WithAllowlistResolver(serving(nil), every))
		require.ErrorContains(t, err, "expected at least 10s, or 0 for 5m0s")
	}
}

// A manager that is not made asks for nothing.
func TestANewThatFailsStartsNoLookUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serving(nil)
		_, err := New(nil, WithAllowlistStrings([]string{"/dns4/example.com"}, false), WithAllowlistResolver(s, 0), WithTrace(t.TempDir()), WithStrictConfig())
		require.Error(t, err)
		pass(time.Hour)
		require.Empty(t, s.asked)
	})
}

func TestNamesComeAndGoWhileAManagerRuns(t *testing.T) {
	const name = "/dns4/example.com"
	synctest.Test(t, func(t *testing.T) {
		s := serving(map[string][]string{name: {"/ip4/192.0.2.1"}})
		m := naming(t, s)
		al := m.GetAllowlist()
		ma, addr := mustMA(t, name), mustMA(t, "/ip4/192.0.2.1")
		pass(time.Hour)
		require.NoError(t, al.Add(ma))
		require.NoError(t, al.Add(ma))
		synctest.Wait()
		require.True(t, al.Allowed(addr))
		require.Equal(t, 1, s.questions(name), "once for both")
		require.NoError(t, al.Remove(ma))
		require.True(t, al.Allowed(addr), "what is added twice is removed twice")

		require.NoError(t, al.Add(addr)) // an entry of its own stays when the answer changes
		s.say(func() { s.answers[name] = []string{"/ip4/192.0.2.2"} })
		pass(aMinute)
		require.True(t, al.Allowed(addr))
		require.NoError(t, al.Remove(addr))
		require.False(t, al.Allowed(addr))
		require.True(t, al.Allowed(mustMA(t, "/ip4/192.0.2.2")))
		require.NoError(t, al.Remove(mustMA(t, "/ip4/192.0.2.2"))) // which is not listed by itself
		require.True(t, al.Allowed(mustMA(t, "/ip4/192.0.2.2")))

		c, err := m.OpenConnection(network.DirInbound, true, mustMA(t, "/ip4/192.0.2.2/tcp/1"))
		require.NoError(t, err)
		require.NoError(t, al.Remove(ma))
		requireEmptyAllowlist(t, al)
		require.NoError(t, c.SetPeer(testPeer), "an open connection goes on")
		c.Done()
		asked := s.questions(name)
		pass(time.Hour)
		require.Equal(t, asked, s.questions(name))
	})
}

// The answer for a name that was removed meanwhile lists nothing.
func TestAnAnswerThatComesAfterItsNameWasRemovedListsNothing(t *testing.T) {
	const name = "/dns4/example.com"
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := serving(map[string][]string{name: {"/ip4/192.0.2.1"}})
		s.ends = map[string]func(context.Context){name: func(context.Context) { <-release }}
		m := naming(t, s, name)
		al, ma := m.GetAllowlist(), mustMA(t, name)
		require.NoError(t, al.Remove(ma))
		close(release)
		synctest.Wait()
		require.False(t, al.Allowed(mustMA(t, "/ip4/192.0.2.1")))
		require.NoError(t, al.Add(ma))
		synctest.Wait()
		require.True(t, al.Allowed(mustMA(t, "/ip4/192.0.2.1")))
	})
}

func TestNamesAndTheirAddressesAreBounded(t *testing.T) {
	lines := collectLog(t, slog.LevelWarn)
	synctest.Test(t, func(t *testing.T) {
		const name = "/dnsaddr/example.com"
		s := serving(make(map[string][]string))
		for i := range 256 {
			s.answers[name] = append(s.answers[name], fmt.Sprintf("/ip4/192.0.2.%d", 255-i))
		}
		m := naming(t, s, name)
		n := lookedUp(t, m, name)
		require.Len(t, n.Admits, mostNameEntries)
		require.Equal(t, "/ip4/192.0.2.0", n.Admits[0])
		require.Equal(t, "/ip4/192.0.2.63", n.Admits[63])
		require.Equal(t, 256-64, n.LeftOut)
		require.Equal(t, `"/ip4/192.0.2.64": a host name stands for at most 64 addresses`, n.WhyLeftOut)
		require.Contains(t, bodyOf(t, ask(Handler(m), http.MethodGet, "/?format=text")), " /ip4/192.0.2.7 and 56 more")
		pass(time.Hour)
		require.Len(t, lines.take(), 1, "it is logged once")

		// A part that fails brings none above the bound.
		s.say(func() {
			s.answers[name] = []string{"/ip4/198.51.100.1", "/dns4/example.com"}
			s.errs = map[string]error{"/dns4/example.com": errFault}
		})
		pass(aMinute)
		n = lookedUp(t, m, name)
		require.Len(t, n.Admits, mostNameEntries)
		require.Contains(t, n.Admits, "/ip4/198.51.100.1", "what is new goes before what is old")

		var names []multiaddr.Multiaddr
		for i := range mostNames - 1 {
			names = append(names, mustMA(t, fmt.Sprintf("/dns4/%d.example.com", i)))
			require.NoError(t, m.GetAllowlist().Add(names[i]))
		}
		one := mustMA(t, "/dns4/example.com")
		require.EqualError(t, m.GetAllowlist().Add(one), `allowlist entry "/dns4/example.com": the allowlist has 256 host names already, which is the most that it takes`)
		require.NoError(t, m.GetAllowlist().Add(names[0]), "once more")
		require.NoError(t, m.GetAllowlist().Remove(names[1]))
		require.NoError(t, m.GetAllowlist().Add(one))
		require.Len(t, m.Snapshot().Allowlist.Names, mostNames)
	})
}

// Names that contain many others ask no more than a bounded number of questions.
func TestTheQuestionsOfOneLookUpAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const name = "/dnsaddr/example.com"
		s := serving(make(map[string][]string))
		for i := range 100 {
			inner := fmt.Sprintf("/dnsaddr/%d.example.com", i)
			s.answers[name] = append(s.answers[name], inner)
			s.answers[inner] = []string{fmt.Sprintf("/ip4/192.0.2.%d", i)}
		}
		m := naming(t, s, name)
		require.Len(t, s.asked, mostQuestions)
		n := lookedUp(t, m, name)
		require.Len(t, n.Admits, mostQuestions-1)
		require.Equal(t, 100-(mostQuestions-1), n.LeftOut)
	})
}

// A look at an address that each answer has never finds it missing.
func TestAnAddressThatStaysInTheAnswersIsNeverMissing(t *testing.T) {
	var al Allowlist
	h := newHostNames(serving(nil), time.Minute, &al)
	al.names = h
	defer h.end()
	require.NoError(t, al.Add(mustMA(t, "/dns4/example.com")))
	n := h.names[allowlistEntry{name: "/dns4/example.com"}]
	rng := testRandom(t)
	stays, err := readAllowlistEntry(mustMA(t, "/ip4/192.0.2.1"))
	require.NoError(t, err)
	learn := func() {
		l := &lookUp{found: []allowlistEntry{stays}}
		for range rng.IntN(8) {
			e := randomEntry(t, rng, testPeers[:])
			l.found = append(l.found, allowlistEntry{network: e.network})
		}
		h.running++
		h.learn(n, l)
	}
	learn()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	ep := endpointOf(mustMA(t, "/ip4/192.0.2.1/tcp/1"))
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if al.trustIn(ep) != trustsAddr {
					t.Error("an address that stays was missing")
					return
				}
			}
		})
	}
	for range 500 {
		learn()
	}
	close(stop)
	readers.Wait()
	require.NoError(t, al.Remove(mustMA(t, "/dns4/example.com")))
	requireEmptyAllowlist(t, &al)
}

// Random names, answers, failures and removals leave a list as a plain count of entries has it.
func TestNamesWithRandomAnswersListWhatAPlainCountSays(t *testing.T) {
	rng := testRandom(t)
	synctest.Test(t, func(t *testing.T) {
		names := []string{"/dns4/a", "/dns/b", "/dnsaddr/c", "/dnsaddr/c/p2p/" + peerA, "/dns6/d/p2p/" + peerB}
		var addrs []string
		for i := range 6 {
			addrs = append(addrs, fmt.Sprintf("/ip4/192.0.2.%d", i), fmt.Sprintf("/ip6/2001:db8::%d/p2p/%s", i, pick(rng, []string{peerA, peerB})))
		}
		s := serving(make(map[string][]string))
		s.errs = make(map[string]error)
		m := naming(t, s)
		al := m.GetAllowlist()
		added, own := make(map[string]int), make(map[string]int)
		for range 300 {
			switch name, addr := pick(rng, names), pick(rng, addrs); rng.IntN(6) {
			case 0:
				require.NoError(t, al.Add(mustMA(t, name)))
				added[name]++
			case 1:
				require.NoError(t, al.Remove(mustMA(t, name)))
				added[name] = max(0, added[name]-1)
			case 2:
				require.NoError(t, al.Add(mustMA(t, addr)))
				own[addr]++
			case 3:
				require.NoError(t, al.Remove(mustMA(t, addr)))
				own[addr] = max(0, own[addr]-1)
			case 4:
				question := strings.TrimSuffix(name, "/p2p/"+peerB)
				s.say(func() {
					s.errs[question] = pick(rng, []error{nil, nil, errFault})
					s.answers[question] = nil
					for range rng.IntN(4) {
						s.answers[question] = append(s.answers[question], pick(rng, addrs))
					}
				})
			case 5:
				pass(aMinute)
			}
			synctest.Wait()
			var want Allowlist
			want.view.Store(emptyAllowlist())
			for addr, n := range own {
				for range n {
					require.NoError(t, want.Add(mustMA(t, addr)))
				}
			}
			shown := m.Snapshot().Allowlist.Names
			listed := 0
			for _, n := range added {
				listed += min(n, 1)
			}
			require.Len(t, shown, listed)
			for _, n := range shown {
				require.Positive(t, added[n.Entry])
				for _, e := range n.Admits {
					require.NoError(t, want.Add(mustMA(t, e)))
				}
			}
			if al.view.Load() != nil {
				requireSameLists(t, &want, al)
			}
		}
	})
}

func TestAnIdleManagerWithNamesHasOneGoroutine(t *testing.T) {
	before := ourGoroutines()
	s := serving(map[string][]string{"/dns4/example.com": {"/ip4/192.0.2.1"}})
	m := newManager(t, unlimitedConf(), WithAllowlistResolver(s, 0))
	for ourGoroutines()-before < 1 {
		runtime.Gosched() // the worker has not begun
	}
	require.Equal(t, 1, ourGoroutines()-before, "no names")
	require.NoError(t, m.GetAllowlist().Add(mustMA(t, "/dns4/example.com")))
	for !m.GetAllowlist().Allowed(mustMA(t, "/ip4/192.0.2.1")) || ourGoroutines()-before > 1 {
		runtime.Gosched()
	}
	require.NoError(t, m.Close())
	require.Equal(t, before, ourGoroutines())
}

// Adding, removing, looking up, looking on and closing at once.
func TestNamesWithManyGoroutines(t *testing.T) {
	s := serving(map[string][]string{"/dns4/0": {"/ip4/192.0.2.1"}, "/dnsaddr/1": {"/dns4/0", "/ip4/192.0.2.2/p2p/" + peerA}})
	m := newManager(t, unlimitedConf(), WithAllowlistResolver(s, 0))
	together(t, 4, func(id int, rng *rand.Rand) {
		for range 200 {
			ma := mustMA(t, pick(rng, []string{"/dns4/0", "/dnsaddr/1", "/dns4/2", "/ip4/192.0.2.1"}))
			if err := m.GetAllowlist().Add(ma); err != nil {
				t.Error(err)
			}
			m.Snapshot()
			m.read()
			if err := m.GetAllowlist().Remove(ma); err != nil {
				t.Error(err)
			}
		}
	})
	requireEmptyAllowlist(t, m.GetAllowlist())
	require.NoError(t, m.GetAllowlist().Add(mustMA(t, "/dnsaddr/1")))
	require.NoError(t, m.Close())
}

func TestFailingNamesAreShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serving(map[string][]string{"/dns4/example.com": {"/ip4/192.0.2.1"}, "/dnsaddr/half.example.com": {"/ip4/192.0.2.2", "/memory/1"}})
		s.ends = map[string]func(context.Context){"/dns4/slow": hang}
		s.errs = map[string]error{"/dns4/<b>.example.com": errors.New("no such\nhost")}
		m := naming(t, s)
		reg := registryOf(t, m)
		none, err := json.Marshal(m.Snapshot())
		require.NoError(t, err)
		require.NotContains(t, string(none), "Allowlist\":")
		require.Empty(t, seriesOf(t, reg, "allowlist_names"))
		require.Empty(t, seriesOf(t, reg, "allowlist_failed_lookups_total"))
		for _, name := range []string{"/dns4/example.com", "/dns4/<b>.example.com", "/dnsaddr/half.example.com", "/dns4/slow"} {
			require.NoError(t, m.GetAllowlist().Add(mustMA(t, name)))
		}
		synctest.Wait()
		require.Equal(t, map[string]float64{"answered": 2, "failing": 1, "waiting": 1}, seriesOf(t, reg, "allowlist_names"))
		require.Equal(t, map[string]float64{"": 1}, seriesOf(t, reg, "allowlist_failed_lookups_total"))

		text, err := json.Marshal(m.Snapshot())
		require.NoError(t, err)
		var read Snapshot
		require.NoError(t, json.Unmarshal(text, &read))
		require.Equal(t, toJSON(t, m.Snapshot().Allowlist), toJSON(t, read.Allowlist))
		require.Len(t, read.Allowlist.Names, 4)

		page := bodyOf(t, ask(Handler(m), http.MethodGet, "/?format=text"))
		for _, line := range []string{
			`/dns4/<b>.example.com      none            never     "failed 1 time: \"/dns4/<b>.example.com\": no such\nhost"`,
			`/dns4/example.com          /ip4/192.0.2.1  0s ago    -`,
			`/dns4/slow                 none            never     -`,
			`/dnsaddr/half.example.com  /ip4/192.0.2.2  0s ago    1 left out: "/memory/1": expected an IP address`,
		} {
			require.Contains(t, page, line)
		}
		require.Less(t, strings.Index(page, "<b>"), strings.Index(page, "/dns4/example.com"), "those that fail come first")
		page = bodyOf(t, ask(Handler(m), http.MethodGet, "/?format=html"))
		require.Contains(t, page, `<tr class="near"><td class="name" title="/dns4/&lt;b&gt;.example.com">`)
		require.NotContains(t, page, "<b>")
		m.Close()
	})
}
