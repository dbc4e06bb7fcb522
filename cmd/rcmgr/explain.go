package main

// The command "explain": whether a request would be admitted. A node answers by itself; from a
// saved snapshot, the limits in it are all that is known.

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/spf13/cobra"

	"github.com/weir-p2p/rcmgr"
)

// question is what is asked.
type question struct {
	what                                         rcmgr.Kind
	direction, peer, endpoint, protocol, service string
	memory                                       size
	priority                                     uint8
	fd                                           bool
}

func (a *app) explainCommand() *cobra.Command {
	q := question{}
	c := &cobra.Command{
		Use:   "explain SOURCE {conn|stream|peer|protocol|service|system|transient}",
		Short: "Say whether a request would be admitted now, and what stands in its way",
		Long: `Say whether a node would admit a connection, a stream, or a reservation of memory at a scope now,
which limits it has to fit, and which place of the configuration would admit it.

From a saved snapshot, only the limits that it shows are checked: gates, fair shares, the
allowlist, priorities, and one peer's part of a protocol or service are not known then.

The exit code is 1 if the request would be refused.`,
		Example: `  rcmgr explain http://127.0.0.1:6060/rcmgr stream --peer 12D3KooW… --protocol /ipfs/bitswap/1.2.0
  rcmgr explain http://127.0.0.1:6060/rcmgr conn --endpoint /ip4/192.0.2.1/tcp/4001 --fd
  rcmgr explain node.json transient --memory 1MiB`,
		Args: cobra.ExactArgs(2),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return []string{"conn", "stream", "peer", "protocol", "service", "system", "transient"}, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := q.what.UnmarshalText([]byte(args[1])); err != nil {
				return usage("%w", err)
			}
			if q.direction != "inbound" && q.direction != "outbound" {
				return usage("invalid value %q for flag --direction: expected inbound or outbound", q.direction)
			}
			var answer rcmgr.Explanation
			if isURL(args[0]) {
				body, err := a.fetch(cmd.Context(), args[0], q.query())
				if err != nil {
					return err
				}
				if err := json.Unmarshal(body, &answer); err != nil || answer.Checks == nil {
					return fmt.Errorf("%s: the answer is no explanation: is it the page of a resource manager?", args[0])
				}
			} else {
				s, _, err := a.snapshot(cmd.Context(), args[0], nil)
				if err != nil {
					return err
				}
				found, err := q.answer(s)
				if err != nil {
					return err
				}
				answer = *found
			}
			err := error(nil)
			if a.json() {
				err = a.writeJSON(&answer)
			} else {
				err = answer.WriteTable(a.out)
			}
			if err == nil && !answer.Admitted {
				err = &outcome{code: exitWrong}
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&q.direction, "direction", "inbound", "`direction` of the connection or stream: inbound or outbound")
	f.StringVar(&q.peer, "peer", "", "the `ID` of the peer")
	f.StringVar(&q.endpoint, "endpoint", "", "the far end of the connection, a `multiaddr`")
	f.StringVar(&q.protocol, "protocol", "", "`name` of the stream's protocol")
	f.StringVar(&q.service, "service", "", "`name` of the stream's service")
	f.Var(&q.memory, "memory", "`size` of the memory that is reserved as the last step")
	f.Uint8Var(&q.priority, "priority", 128, "priority of the memory, a `number` from 0 to 255")
	f.BoolVar(&q.fd, "fd", false, "the connection takes a file descriptor")
	c.RegisterFlagCompletionFunc("direction", cobra.FixedCompletions([]string{"inbound", "outbound"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// query returns the question as the query of a page.
func (q *question) query() url.Values {
	v := url.Values{"explain": {q.what.String()}, "direction": {q.direction}, "priority": {strconv.Itoa(int(q.priority))}}
	for key, value := range map[string]string{"peer": q.peer, "endpoint": q.endpoint, "protocol": q.protocol, "service": q.service} {
		if value != "" {
			v.Set(key, value)
		}
	}
	if q.memory > 0 {
		v.Set("memory", strconv.FormatInt(int64(q.memory), 10))
	}
	if q.fd {
		v.Set("fd", "1")
	}
	return v
}

// answer answers the question from a snapshot.
func (q *question) answer(s *rcmgr.Snapshot) (*rcmgr.Explanation, error) {
	if q.peer != "" {
		id, err := peer.Decode(q.peer)
		if err != nil {
			return nil, usage("invalid value %q for flag --peer: expected a peer ID", q.peer)
		}
		q.peer = id.String()
	}
	e := &rcmgr.Explanation{Admitted: true,
		Unknown: "this is from a saved snapshot: gates, fair shares, the allowlist, priorities, and one peer's part of a protocol or service are not known"}
	held := make(map[[2]string]int64) // what the steps before have taken, by scope and limit
	check := func(step, scope string, asked map[string]int64) {
		for _, u := range s.LimitUses() {
			n, counts := asked[u.Name]
			if u.Scope != scope || !counts {
				continue
			}
			at := [2]string{scope, u.Name}
			k := rcmgr.LimitCheck{Step: step, Scope: scope, Kind: u.Kind, Name: u.Name, Use: u.Use + held[at], Asked: n,
				Limit: u.Limit, Threshold: u.Limit}
			held[at] += n
			k.Room = k.Threshold - k.Use
			k.Fits = n <= k.Room
			for _, kind := range s.Observed {
				k.Observed = k.Observed || kind == u.Kind
			}
			if !k.Fits {
				k.Cause, k.ConfigKey = rcmgr.CauseLimit.String(), configKey(u)
				if b := s.Bottleneck(); b != nil && b.Holder != "" && b.Scope == u.Scope && b.Name == u.Name {
					k.Largest, k.LargestHolds = "peer:"+b.Holder, b.Held
				}
			}
			e.Checks = append(e.Checks, k)
		}
	}
	in := strings.ToUpper(q.direction[:1]) + q.direction[1:]
	unit := map[string]int64{"Streams": 1, "Streams" + in: 1}
	named := func(kind, name string) string {
		if name == "" {
			return ""
		}
		return kind + ":" + name
	}
	of, protocol, service := named("peer", q.peer), named("protocol", q.protocol), named("service", q.service)
	var chain []string
	switch q.what {
	case rcmgr.KindConn:
		unit = map[string]int64{"Conns": 1, "Conns" + in: 1}
		if q.fd {
			unit["FD"] = 1
		}
		check("open", "transient", unit)
		check("open", "system", unit)
		check("peer", of, unit)
		chain = []string{of, "system"}
		if of == "" {
			chain = []string{"transient", "system"}
		}
	case rcmgr.KindStream:
		switch {
		case q.peer == "":
			return nil, usage("a stream needs --peer")
		case q.service != "" && q.protocol == "":
			return nil, usage("a stream with --service needs --protocol")
		}
		for _, scope := range []string{of, "transient", "system"} {
			check("open", scope, unit)
		}
		check("protocol", protocol, unit)
		check("service", service, unit)
		chain = []string{of, protocol, service, "system"}
		if protocol == "" {
			chain = []string{of, "transient", "system"}
		}
	case rcmgr.KindSystem:
		chain = []string{"system"}
	case rcmgr.KindTransient:
		chain = []string{"transient", "system"}
	case rcmgr.KindPeer:
		chain = []string{of, "system"}
	case rcmgr.KindProtocol:
		chain = []string{protocol, "system"}
	case rcmgr.KindService:
		chain = []string{service, "system"}
	default:
		return nil, usage("a request for %v cannot be explained: expected conn, stream, peer, protocol, service, system or transient", q.what)
	}
	switch {
	case q.what != rcmgr.KindConn && q.what != rcmgr.KindStream && q.memory == 0:
		return nil, usage("nothing is asked for: expected --memory, or conn or stream")
	case chain[0] == "":
		return nil, usage("expected --%v", q.what)
	}
	if q.memory > 0 {
		for _, scope := range chain {
			check("memory", scope, map[string]int64{"Memory": int64(q.memory)})
		}
	}
	for _, scope := range chain {
		if scope != "" && !hasScope(s, scope) {
			e.Unknown += "; " + scope + " is not in the snapshot"
		}
	}
	for i := range e.Checks {
		if k := &e.Checks[i]; !k.Fits && !k.Observed {
			e.Admitted, e.By = false, k
			break
		}
	}
	return e, nil
}

func hasScope(s *rcmgr.Snapshot, name string) bool {
	for i := range s.Scopes {
		if s.Scopes[i].Name == name {
			return true
		}
	}
	return false
}

// configKey returns the place of a limit in the configuration.
func configKey(u rcmgr.LimitUse) string {
	switch u.Kind {
	case rcmgr.KindPeer:
		return "PeerDefault." + u.Name
	case rcmgr.KindService, rcmgr.KindProtocol:
		kind, name, _ := strings.Cut(u.Scope, ":")
		return fmt.Sprintf("%s[%q].%s", strings.ToUpper(kind[:1])+kind[1:], name, u.Name)
	}
	name := u.Kind.String()
	return strings.ToUpper(name[:1]) + name[1:] + "." + u.Name
}
