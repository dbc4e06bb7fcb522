package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

func TestMain(m *testing.M) {
	quiet()
	os.Exit(m.Run())
}

// attackUntil attacks for a time, and again for twice as long, up to a minute, if the
// machine is so slow that the friend has not been served yet, or that the report lacks a
// required line. Any other fault fails at once.
func attackUntil(t *testing.T, d time.Duration, attack func(time.Duration, io.Writer) (int, error), line *regexp.Regexp) (report string) {
	t.Helper()
	for ; ; d *= 2 {
		var out bytes.Buffer
		code, err := attack(d, &out)
		require.NoError(t, err)
		report = out.String()
		if code == 0 && line.MatchString(report) {
			return report
		}
		require.NotContains(t, neverServed.ReplaceAllString(report, ""), "FAIL", report)
		require.Less(t, d, time.Minute, report)
	}
}

var (
	anyLine     = regexp.MustCompile("")
	neverServed = regexp.MustCompile(`(?m)^FAIL  friend refused by our manager: never served at all( \(.*)?$`)
)

// set returns the settings of a command line.
func set(t *testing.T, args ...string) settings {
	t.Helper()
	s, err := settingsFrom(args)
	require.NoError(t, err)
	return s
}

// floodFor returns a function that runs a show for any length of time.
func floodFor(t *testing.T, where places, args ...string) func(time.Duration, io.Writer) (int, error) {
	return func(d time.Duration, out io.Writer) (int, error) {
		s := set(t, args...)
		s.duration = d
		return flood(t.Context(), s, where, out)
	}
}

func TestTheVictimHoldsAndTheFriendIsServed(t *testing.T) {
	if testing.Short() {
		t.Skip("attacks a real host for two seconds")
	}
	shared := choosePlaces(3, false)
	shared.shareOne()
	for name, where := range map[string]places{"an address each": choosePlaces(3, false), "one address for all": shared} {
		t.Run(name, func(t *testing.T) {
			report := attackUntil(t, 2*time.Second, floodFor(t, where, "-attackers", "3"), anyLine)
			require.Contains(t, report, "ok    limits exceeded: none")
			require.Regexp(t, `(?m)^  rate:127.3.0.0/16    16 at once, then 4 a second +\d+$`, report)
			require.Regexp(t, `(?m)^  subnet:127.2.0.0/16  8 at a time +\d+$`, report)
			requireNarrow(t, report)
		})
	}
}

// Limits go down and up during the attack, with a mistake in the file in between.
func TestLimitsChangeUnderAttackAndTheFriendIsServed(t *testing.T) {
	if testing.Short() {
		t.Skip("attacks a real host for three seconds")
	}
	file := filepath.Join(t.TempDir(), "limits.json")
	texts := []string{
		`{"System": {"ConnsInbound": 16}, "Transient": {"ConnsInbound": 6, "StreamsInbound": 8}}`,
		`{"Sytem": {"ConnsInbound": 1}}`,
		`{"System": {"ConnsInbound": 100, "FD": 200}, "PeerDefault": {"StreamsInbound": 40}, "Costs": {"Conn": "16KiB"}}`,
		`{"PeerDefault": {"ConnsInbound": 2, "StreamsInbound": 12}}`,
	}
	change := func(ctx context.Context) {
		next := time.NewTicker(400 * time.Millisecond)
		defer next.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-next.C:
				if err := os.WriteFile(file, []byte(texts[i%len(texts)]), 0o600); err != nil {
					t.Error(err)
				}
			}
		}
	}
	report := attackUntil(t, 3*time.Second, func(d time.Duration, out io.Writer) (int, error) {
		require.NoError(t, os.WriteFile(file, []byte("{}"), 0o600))
		ctx, cancel := context.WithCancel(t.Context())
		said := make(something, 1)
		var changes sync.WaitGroup
		changes.Go(func() {
			select {
			case <-said: // the file was read, and must have no mistake at first
				change(ctx)
			case <-ctx.Done():
			}
		})
		defer changes.Wait()
		defer cancel()
		return floodFor(t, choosePlaces(8, false), "-limits", file, "-watch")(d, io.MultiWriter(said, out))
	}, regexp.MustCompile(`(?m)^limits changed [1-9]`))
	require.Contains(t, report, "ok    limits exceeded: none")
	require.Contains(t, report, "the limits of "+file+" are in force\n")
}

// something is a writer that signals each write.
type something chan struct{}

func (s something) Write(b []byte) (int, error) {
	select {
	case s <- struct{}{}:
	default: // a signal is already waiting
	}
	return len(b), nil
}

func TestLimitsFollowTheirFile(t *testing.T) {
	const typo, gone = `{"System": {"Conn": 6}}`, ""
	file := filepath.Join(t.TempDir(), "limits.json")
	require.NoError(t, os.WriteFile(file, []byte("{}"), 0o600))
	m, err := rcmgr.New(rcmgr.NewFixedLimiter(showLimits(8)))
	require.NoError(t, err)
	defer m.Close()
	var told []string
	f := newFollower(set(t, "-limits", file, "-watch"), m, newWatch(), func(line string) { told = append(told, line) })
	inForce, slip := "the limits of "+file+" are in force", "limits stay as they are: "
	for _, step := range []struct {
		text    string
		applied int
		conns   int
		slip    string
		told    string
	}{
		{`{}`, 0, math.MaxInt, "", ""},
		{`{"System": {"Conns": 5}}`, 1, 5, "", inForce},
		{typo, 1, 5, "limits: " + file + ": line 1, column 13: System.Conn: unknown name, did you mean Conns?", slip},
		{`{"System": {"Conns": 5}}`, 1, 5, "", inForce}, // only the error has changed
		{gone, 1, 5, "open " + file, slip},
		{`{"System": {"Conns": 5}}`, 1, 5, "", inForce},
		{`{"System": {"Conns": 7}}`, 2, 7, "", inForce},
	} {
		if step.text == gone {
			require.NoError(t, os.Remove(file))
		} else {
			require.NoError(t, os.WriteFile(file, []byte(step.text), 0o600))
		}
		told = nil
		for range 2 {
			f.look()
			if step.told == "" {
				require.Empty(t, told)
			} else {
				require.Len(t, told, 1, "at once, and once")
				require.Contains(t, told[0], step.told+step.slip)
			}
			require.Equal(t, step.conns, m.GetConnLimit())
			require.Equal(t, step.applied, f.applied)
			if step.slip == "" {
				require.NoError(t, f.slip)
			} else {
				require.ErrorContains(t, f.slip, step.slip)
				require.Contains(t, f.String(), "limits changed 1 time; the file as it is now changed nothing: ")
			}
		}
	}
	require.Equal(t, "limits changed 2 times", f.String())
}

func TestAScopeAboveALoweredLimitMayKeepWhatItHolds(t *testing.T) {
	w := newWatch()
	for _, step := range []struct {
		use, limit int64
		passed     int
	}{{5, 5, 0}, {5, 2, 0}, {4, 2, 0}, {4, 2, 0}, {2, 2, 0}, {3, 2, 1}, {9, 9, 1}} {
		w.checkLocked("system", 0, step.use, step.limit)
		require.Len(t, w.passed, step.passed, "%+v", step)
	}
}

// heldUnder is a manager of which a scope holds this much under this limit.
type heldUnder struct {
	manager
	use, limit int
}

func (h *heldUnder) Snapshot() rcmgr.Snapshot {
	return rcmgr.Snapshot{Scopes: []rcmgr.ScopeState{{Name: "system", Kind: rcmgr.KindSystem,
		Use: network.ScopeStat{NumConnsInbound: h.use}, Limit: unlimitedBut(func(l *rcmgr.BaseLimit) { l.ConnsInbound = h.limit })}}}
}

// What was held and what the limit was between two readings is not known.
func TestUseAboveALimitIsFineIfTheLimitChangedBetweenTwoLooks(t *testing.T) {
	for _, c := range []struct {
		seen    bool // there is a reading before the change
		changes int
		passed  int
	}{{true, 0, 1}, {true, 1, 1}, {true, 2, 0}, {false, 0, 1}, {false, 1, 0}} {
		w := newWatch()
		if c.seen {
			w.lookNow(&heldUnder{use: 2, limit: 2})
		}
		for range c.changes {
			require.NoError(t, w.whileLimitsChange(func() error { return nil }))
		}
		w.lookNow(&heldUnder{use: 3, limit: 2})
		require.Len(t, w.passed, c.passed, "%+v", c)
		w.lookNow(&heldUnder{use: 3, limit: 2})
		require.Len(t, w.passed, c.passed, "it keeps that: %+v", c)
		w.lookNow(&heldUnder{use: 4, limit: 2})
		require.Len(t, w.passed, 1, "and gets no more: %+v", c)
	}
	// A reading that begins while limits change may be from before or after the change.
	w := newWatch()
	require.NoError(t, w.whileLimitsChange(func() error {
		w.lookNow(&heldUnder{use: 3, limit: 3})
		return nil
	}))
	require.NoError(t, w.whileLimitsChange(func() error { return nil }))
	w.lookNow(&heldUnder{use: 4, limit: 2})
	require.Empty(t, w.passed)
}

func TestAnInterruptEndsTheAttackEarlyWithTheReport(t *testing.T) {
	if testing.Short() {
		t.Skip("attacks a real host for a second")
	}
	report := attackUntil(t, time.Second, func(d time.Duration, out io.Writer) (int, error) {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		return flood(ctx, set(t, "-duration", "1h", "-attackers", "2", "-manager", "both"), choosePlaces(2, false), out)
	}, anyLine)
	require.NotContains(t, report, "upstream")
}

func TestBothManagersStandTheSameAttack(t *testing.T) {
	if testing.Short() {
		t.Skip("attacks two real hosts for a second each")
	}
	for manager, want := range map[string][]string{
		"both": {
			"the same attack, one after the other",
			" friend's connect served ", " ours upstream\n",
			"ok    limits exceeded: none",
			"for comparison, on go-libp2p's manager\n      limits exceeded: ",
		},
		"upstream": {
			"limits of the victim",
			"  open connection ",
			"for comparison, on go-libp2p's manager\n      limits exceeded: ",
		},
	} {
		t.Run(manager, func(t *testing.T) {
			report := attackUntil(t, time.Second, floodFor(t, choosePlaces(3, false), "-attackers", "3", "-manager", manager), anyLine)
			for _, text := range want {
				require.Contains(t, report, text)
			}
			requireNarrow(t, report)
		})
	}
}

func TestAFriendBehindARelayIsServed(t *testing.T) {
	if testing.Short() {
		t.Skip("attacks a real host for two seconds")
	}
	report := attackUntil(t, 2*time.Second, floodFor(t, choosePlaces(8, true), "-friend-behind-relay"), anyLine)
	require.Regexp(t, `(?m)^  connect +1  100.00 %`, report, "the friend came once and stayed")
}

func TestTheAllowlistCoversTheFriendBehindItsRelayAndTheRelay(t *testing.T) {
	limits := rcmgr.PartialLimitConfig{Transient: rcmgr.ResourceLimits{Streams: rcmgr.BlockAllLimit}}.Build(rcmgr.InfiniteLimits)
	var ids [3]peer.ID
	for i := range ids {
		f, err := newFriend(nil)
		require.NoError(t, err)
		ids[i] = f.id
	}
	friend, relay, stranger := ids[0], ids[1], ids[2]
	for _, c := range contenders {
		m, err := c.make(limits, guests(net.IPv4(127, 0, 0, 2), friend, relay))
		require.NoError(t, err, "%s takes the list as far as it can", c.title)
		defer m.Close()
		if c.flag != "ours" {
			continue
		}
		atRelay := "/ip4/127.0.0.2/tcp/1/p2p/" + relay.String()
		for _, from := range []struct {
			addr   string
			peer   peer.ID
			served bool
		}{{atRelay + "/p2p-circuit", friend, true}, {atRelay, relay, true}, {atRelay + "/p2p-circuit", stranger, false}} {
			conn, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast(from.addr))
			require.NoError(t, err)
			defer conn.Done()
			require.NoError(t, conn.SetPeer(from.peer))
			s, err := m.OpenStream(from.peer, network.DirInbound)
			require.Equal(t, from.served, err == nil, "%v", err)
			if err == nil {
				defer s.Done()
			}
		}
	}
}

func requireNarrow(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		require.LessOrEqual(t, len([]rune(line)), 101, line)
	}
}

func TestUpstreamGetsTheLimitsOfOurs(t *testing.T) {
	for _, c := range contenders {
		t.Run(c.flag, func(t *testing.T) {
			m, err := c.make(showLimits(8), []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/127.0.0.2")})
			require.NoError(t, err)
			defer m.Close()
			friend, err := newFriend(nil)
			require.NoError(t, err)
			s, err := m.OpenStream(friend.id, network.DirInbound)
			require.NoError(t, err)
			defer s.Done()
			require.NoError(t, s.SetProtocol(bulkService.protocol))
			require.NoError(t, s.SetService(bulkService.name))
			require.NoError(t, s.ReserveMemory(1, network.ReservationPriorityAlways))
			unlimited := unlimitedBut(func(*rcmgr.BaseLimit) {})
			limit := map[string]rcmgr.BaseLimit{}
			for _, scope := range m.Snapshot().Scopes {
				limit[scope.Name] = scope.Limit
				if scope.Name != "transient" && !strings.HasPrefix(scope.Name, "allowlisted") {
					require.Equal(t, network.ScopeStat{NumStreamsInbound: 1, Memory: 1}, scope.Use, scope.Name)
				}
			}
			for name, change := range map[string]func(l *rcmgr.BaseLimit){
				"system":                     func(l *rcmgr.BaseLimit) { l.ConnsInbound, l.FD, l.StreamsInbound, l.Memory = 64, 48, 160, 64*mib },
				"transient":                  func(l *rcmgr.BaseLimit) { l.ConnsInbound, l.StreamsInbound = 24, 48 },
				"peer:" + friend.id.String(): func(l *rcmgr.BaseLimit) { l.ConnsInbound, l.StreamsInbound, l.Memory = 4, 28, 16*mib },
				"protocol:" + string(bulkService.protocol): func(l *rcmgr.BaseLimit) { l.StreamsInbound = 12 },
				"service:" + bulkService.name:              func(l *rcmgr.BaseLimit) { l.Memory = 6 * mib },
			} {
				want := unlimited
				change(&want)
				require.Equal(t, want, limit[name], name)
			}
			// A snapshot has no limits of one peer in a protocol or service.
			for range 9 {
				s, err := m.OpenStream(friend.id, network.DirInbound)
				require.NoError(t, err)
				defer s.Done()
				require.NoError(t, s.SetProtocol(bulkService.protocol))
			}
			s, err = m.OpenStream(friend.id, network.DirInbound)
			require.NoError(t, err)
			defer s.Done()
			require.ErrorIs(t, s.SetProtocol(bulkService.protocol), network.ErrResourceLimitExceeded)
		})
	}
}

// TestEachOfTheAttackersNetworksMeetsItsGate opens as many connections as possible from
// each network, on either manager, and on ours connects the friend in between.
func TestEachOfTheAttackersNetworksMeetsItsGate(t *testing.T) {
	where := choosePlaces(8, false)
	if where.shared {
		t.Skip("this machine has one loopback address only")
	}
	limits := showLimits(8).ToPartialLimitConfig()
	limits.Transient, limits.System = rcmgr.ResourceLimits{}, rcmgr.ResourceLimits{} // so that no scope is full before a gate
	f, err := newFriend(where.friend)
	require.NoError(t, err)
	for _, c := range contenders {
		t.Run(c.flag, func(t *testing.T) {
			m, err := c.make(limits.Build(rcmgr.InfiniteLimits), guests(where.friend, f.id, ""))
			require.NoError(t, err)
			defer m.Close()
			o := newObserver(m, where, f.id)
			open := func(from net.IP) (network.ConnManagementScope, error) {
				return o.OpenConnection(network.DirInbound, true, multiaddr.StringCast(fmt.Sprintf("/ip4/%v/tcp/1", from)))
			}
			// attack connects until it is refused, and returns what refused.
			attack := func(network string, most int, stay bool) (opened int, gate string) {
				for i := range most {
					attacker := i % len(where.attackers)
					if networkOf(attacker) != network {
						continue
					}
					conn, err := open(where.attackers[attacker])
					if err != nil {
						return opened, gateOf(err)
					}
					if opened++; !stay {
						conn.Done()
						continue
					}
					t.Cleanup(conn.Done)
				}
				return opened, ""
			}
			_, gate := attack(freeNetwork, 1000, true)
			require.Empty(t, gate)
			opened, gate := attack(fewNetwork, 1000, true)
			require.Equal(t, 8, opened)
			require.Regexp(t, "^subnet(:127.2.0.0/16)?$", gate)
			opened, gate = attack(slowNetwork, 100_000, false)
			require.GreaterOrEqual(t, opened, 16)
			require.Regexp(t, "^rate(:127.3.0.0/16)?$", gate)
			require.Len(t, o.gateRefusals(), 2)
			if c.judged {
				conn, err := open(where.friend)
				require.NoError(t, err, "the allowlist takes the friend past the gate")
				defer conn.Done()
				require.NoError(t, conn.SetPeer(f.id))
				require.Empty(t, o.refusals())
			}
		})
	}
}

func TestWrongCommandLinesAreErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "limits.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"System": {"Conn": 6}}`), 0o600))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	const notOurs = ": expected with -manager ours or both: go-libp2p's manager has nothing of the kind"
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"10s"}, `unexpected argument "10s": expected nothing but flags`},
		{[]string{"-duration", "0"}, `invalid value "0" for flag -duration: expected a duration of more than 0, `},
		{[]string{"-attackers", "0"}, `invalid value "0" for flag -attackers: expected a number from 1 to 1000`},
		{[]string{"-attackers", "1001"}, `invalid value "1001" for flag -attackers: expected a number from 1 to 1000`},
		{[]string{"-manager", "our"}, `invalid value "our" for flag -manager: expected ours, upstream or both`},
		{[]string{"-manager", "upstream", "-serve", "127.0.0.1:0"}, `invalid value "127.0.0.1:0" for flag -serve` + notOurs},
		{[]string{"-manager", "upstream", "-limits", file, "-watch"}, `invalid value "true" for flag -watch` + notOurs},
		{[]string{"-watch"}, `invalid value "true" for flag -watch: expected with -limits, the file to watch`},
		{[]string{"-limits", file + "s"}, fmt.Sprintf("invalid value %q for flag -limits: expected a file of limits: open ", file+"s")},
		{[]string{"-limits", filepath.Dir(file)}, fmt.Sprintf("invalid value %q for flag -limits: expected a file of limits: read ", filepath.Dir(file))},
		{[]string{"-limits", file, "-watch"}, fmt.Sprintf("invalid value %q for flag -limits: limits: %s: line 1, column 13: System.Conn: unknown name, did you mean Conns?", file, file)},
		{[]string{"-serve", "127.0.0.1"}, `invalid value "127.0.0.1" for flag -serve: expected an address with a port, `},
		{[]string{"-serve", taken.Addr().String()}, fmt.Sprintf("invalid value %q for flag -serve: listen tcp ", taken.Addr())},
	} {
		_, err := settingsFrom(c.args)
		require.ErrorContains(t, err, c.want, "%q", c.args)
		require.True(t, strings.HasPrefix(err.Error(), c.want), "%v", err)
	}
	require.NotNil(t, set(t, "-manager", "both", "-serve", "127.0.0.1:0").page)
}

func TestTheFriendHasTheAddressThatIsPrinted(t *testing.T) {
	for _, relay := range []bool{false, true} {
		where := choosePlaces(1, relay)
		if where.shared {
			t.Skip("this machine has one loopback address only")
		}
		says := where.describe()
		requireNarrow(t, says)
		require.Contains(t, says, "friend at "+where.home.String()+",")
		f, err := newFriend(where.home)
		require.NoError(t, err)
		var relayID peer.ID
		var at host.Host
		if relay {
			at, err = newRelay(t.Context(), where.friend)
			require.NoError(t, err)
			defer at.Close()
			relayID = at.ID()
			require.Contains(t, says, "behind a relay at "+where.friend.String()+",")
		}
		v, err := newVictim(contenders[0], set(t).limits, where, f.id, relayID)
		require.NoError(t, err)
		defer v.close()
		if relay {
			require.NoError(t, v.reserve(t.Context(), at))
		} else {
			at = v.host
		}
		ctx, leave := context.WithCancel(t.Context())
		var stay sync.WaitGroup
		arrived := make(chan struct{})
		stay.Go(func() { f.visit(ctx, v, byTCP, func() { close(arrived) }) })
		<-arrived
		seenBy := func(h host.Host) string {
			conns := h.Network().ConnsToPeer(f.id)
			require.Len(t, conns, 1)
			ip, err := manet.ToIP(conns[0].RemoteMultiaddr())
			require.NoError(t, err)
			return ip.String()
		}
		require.Equal(t, where.home.String(), seenBy(at))
		require.Equal(t, where.friend.String(), seenBy(v.host))
		require.Equal(t, relay, where.home.String() != where.friend.String())
		leave()
		stay.Wait()
	}
}

func TestHostsDialFromTheirOwnAddressByEitherRoad(t *testing.T) {
	where := choosePlaces(1, false)
	limits := set(t).limits
	f, err := newFriend(where.friend)
	require.NoError(t, err)
	v, err := newVictim(contenders[0], limits, where, f.id, "")
	require.NoError(t, err)
	defer v.close()
	seen := make(chan net.IP, 1)
	v.host.Network().Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		ip, err := manet.ToIP(c.RemoteMultiaddr())
		if err == nil {
			seen <- ip
		}
	}})
	for by := range numRoads {
		key, err := newKey()
		require.NoError(t, err)
		h, err := newHost(key, where.attackers[0], by)
		require.NoError(t, err)
		require.NoError(t, h.Connect(t.Context(), v.info(by)))
		require.True(t, where.attackers[0].Equal(<-seen), "road %d", by)
		require.NoError(t, h.Close())
	}
}

func TestTheObserverNotesWhatIsRefusedToTheFriendOnly(t *testing.T) {
	none := rcmgr.BlockAllLimit
	limits := rcmgr.PartialLimitConfig{
		PeerDefault:       rcmgr.ResourceLimits{Streams: none},
		AllowlistedSystem: rcmgr.ResourceLimits{Conns: none},
		System:            rcmgr.ResourceLimits{Conns: none},
	}.Build(rcmgr.InfiniteLimits)
	where := places{friend: net.IPv4(127, 0, 0, 2)}
	f, err := newFriend(where.friend)
	require.NoError(t, err)
	m, err := newOurs(limits, []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/127.0.0.2/p2p/" + f.id.String())})
	require.NoError(t, err)
	defer m.Close()
	o := newObserver(m, where, f.id)
	stranger, err := newFriend(nil)
	require.NoError(t, err)

	_, err = o.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/127.1.0.1/tcp/1"))
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	_, err = o.OpenStream(stranger.id, network.DirInbound)
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	require.Empty(t, o.refusals())

	_, err = o.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/127.0.0.2/tcp/1"))
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	_, err = o.OpenStream(f.id, network.DirInbound)
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	require.Len(t, o.refusals(), 2)

	counts := o.counts()
	require.EqualValues(t, 2, counts.refused[callConn], "those of strangers count, too")
	require.EqualValues(t, 2, counts.refused[callStream])
	require.EqualValues(t, 4, counts.totalRefused())
}

func TestTheObserverNotesRefusedMemoryUnlessTheFriendCanDoWithout(t *testing.T) {
	limits := rcmgr.PartialLimitConfig{PeerDefault: rcmgr.ResourceLimits{Memory: 100}}.Build(rcmgr.InfiniteLimits)
	where := places{friend: net.IPv4(127, 0, 0, 2)}
	f, err := newFriend(where.friend)
	require.NoError(t, err)
	m, err := newOurs(limits, []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/127.0.0.2/p2p/" + f.id.String())})
	require.NoError(t, err)
	defer m.Close()
	o := newObserver(m, where, f.id)

	conn, err := o.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/127.0.0.2/tcp/1"))
	require.NoError(t, err)
	require.Nil(t, conn.PeerScope())
	require.NoError(t, conn.SetPeer(f.id))
	span, err := conn.PeerScope().BeginSpan()
	require.NoError(t, err)
	stream, err := o.OpenStream(f.id, network.DirInbound)
	require.NoError(t, err)

	require.Error(t, span.ReserveMemory(101, network.ReservationPriorityMedium))
	require.Empty(t, o.refusals())
	require.Error(t, span.ReserveMemory(101, network.ReservationPriorityAlways))
	require.Error(t, stream.ReserveMemory(101, network.ReservationPriorityAlways))
	require.Len(t, o.refusals(), 2)

	stream.Done()
	require.Error(t, stream.ReserveMemory(1, network.ReservationPriorityAlways))
	require.Len(t, o.refusals(), 2, "a closed scope refuses nobody")
	require.EqualValues(t, 3, o.counts().refused[callMemory])
	require.EqualValues(t, 1, o.counts().granted[callPeer])
}

func TestTheObserverClosesWhatTheHostForgot(t *testing.T) {
	m, err := newOurs(rcmgr.InfiniteLimits, []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/127.0.0.2")})
	require.NoError(t, err)
	defer m.Close()
	o := newObserver(m, places{friend: net.IPv4(127, 0, 0, 2)}, "")
	for _, forget := range []bool{false, true} {
		conn, err := o.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/127.1.0.1/tcp/1"))
		require.NoError(t, err)
		if !forget {
			conn.Done()
		}
	}
	require.NotEmpty(t, heldIn(m.Snapshot()))
	require.Equal(t, 1, o.closeForgotten())
	require.Empty(t, heldIn(m.Snapshot()))
}

func TestAFileOverridesTheLimitsOfTheShow(t *testing.T) {
	file := t.TempDir() + "/limits.json"
	require.NoError(t, os.WriteFile(file, []byte(`{"System": {"ConnsInbound": 10}}`), 0o600))
	limits, _, err := loadLimits(file, showLimits(8))
	require.NoError(t, err)
	limiter := rcmgr.NewFixedLimiter(limits)
	require.Equal(t, 10, limiter.GetSystemLimits().GetConnLimit(network.DirInbound))
	require.Equal(t, showLimits(8).ToPartialLimitConfig().System.FD.Build(0), limiter.GetSystemLimits().GetFDLimit())

	require.NoError(t, os.WriteFile(file, []byte(`{"System": [`), 0o600))
	_, _, err = loadLimits(file, showLimits(8))
	require.ErrorContains(t, err, file)
}
