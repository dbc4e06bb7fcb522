package main

// The command "explain": whether a request would be admitted. A node answers by itself; saved.go
// answers from a saved snapshot.

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weir-p2p/rcmgr"
)

// question is what is asked.
type question struct {
	what                                         rcmgr.Kind
	direction, peer, endpoint, protocol, service string
	memory                                       size
	priority                                     int
	fd                                           bool
}

func (a *app) explainCommand() *cobra.Command {
	q := question{priority: 128}
	c := &cobra.Command{
		Use:   "explain SOURCE {conn|stream|peer|protocol|service|system|transient}",
		Short: "Say whether a request would be admitted, and what is in the way",
		Long: `Say whether a node would admit a connection, a stream, or a reservation of
memory at a scope now, which limits it has to fit, and which place of the
configuration would admit it.

From a saved snapshot, the limits, rates, gates and fair shares are checked
that it shows. The answer says what it does not show, such as the allowlist.

Where the table is too narrow for the names of the question, it has the kinds
of the scopes: protocol-peer is the peer's part of the protocol.

The exit code is 1 if the request would be refused.`,
		Example: `  rcmgr explain http://127.0.0.1:6060/rcmgr stream --peer 12D3KooW… --protocol /ipfs/bitswap/1.2.0
  rcmgr explain http://127.0.0.1:6060/rcmgr conn --endpoint /ip4/192.0.2.1/tcp/4001 --fd
  rcmgr explain node.json transient --memory 1MiB`,
		Args: arguments(2, 2, "a source and a kind of scope"),
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
			if err := q.missing(); err != nil {
				return err
			}
			if err := q.unused(cmd); err != nil {
				return err
			}
			var answer rcmgr.Explanation
			if isURL(args[0]) {
				body, err := a.fetch(cmd.Context(), args[0], q.query())
				if err != nil {
					return err
				}
				if err := json.Unmarshal(body, &answer); err != nil || answer.Checks == nil {
					return fmt.Errorf("%s: the answer is no explanation: is it the page of a resource manager?", nameOf(args[0]))
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
				err = a.writeAnswer(&answer)
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
	f.Var(ranged[int]{&q.priority, 0, 255}, "priority", "priority of the memory, a `number` from 0 to 255")
	f.BoolVar(&q.fd, "fd", false, "the connection takes a file descriptor")
	c.RegisterFlagCompletionFunc("direction", cobra.FixedCompletions([]string{"inbound", "outbound"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// writeAnswer writes an answer in sentences, and what was checked as a table.
func (a *app) writeAnswer(e *rcmgr.Explanation) error {
	lines := []string{e.String()}
	if e.Unknown != "" {
		lines = append(lines, e.Unknown)
	}
	for _, t := range checkSheets(e, a.width()) {
		lines = append(lines, "")
		if t.title != "" {
			lines = append(lines, bold.Render(t.title))
		}
		lines = append(lines, t.lines(a.width(), 0, 0, -1)...)
	}
	if len(e.WouldLetGo) > 0 {
		lines = append(lines, "", bold.Render("First to be let go to make room"))
		lines = append(lines, victimSheet(e.WouldLetGo).lines(a.width(), 0, 0, -1)...)
	}
	_, err := fmt.Fprintln(a.coloured(), strings.Join(lines, "\n"))
	return err
}

// missing returns an error that names the flag without which the question asks for nothing.
func (q *question) missing() error {
	named := map[rcmgr.Kind]string{rcmgr.KindPeer: q.peer, rcmgr.KindProtocol: q.protocol, rcmgr.KindService: q.service}
	name, isNamed := named[q.what]
	values := map[rcmgr.Kind]string{rcmgr.KindPeer: "ID", rcmgr.KindProtocol: "NAME", rcmgr.KindService: "NAME"}
	switch {
	case q.what == rcmgr.KindStream && q.peer == "":
		return usage("a stream needs a peer: add --peer ID; a peer that is not connected stands for any newcomer")
	case q.what == rcmgr.KindStream && q.service != "" && q.protocol == "":
		return usage("a stream with --service needs a protocol: add --protocol NAME")
	case isNamed && name == "":
		return usage("no %v is named: add --%v %s", q.what, q.what, values[q.what])
	case q.memory == 0 && (isNamed || q.what == rcmgr.KindSystem || q.what == rcmgr.KindTransient):
		return usage("nothing is asked for: add --memory SIZE for a reservation at that scope, or ask for conn or stream")
	}
	return nil
}

// questionFlags has the flags that say something about each kind of question, beside those of memory.
var questionFlags = map[rcmgr.Kind][]string{
	rcmgr.KindConn:     {"direction", "endpoint", "fd", "peer"},
	rcmgr.KindStream:   {"direction", "peer", "protocol", "service"},
	rcmgr.KindPeer:     {"peer"},
	rcmgr.KindProtocol: {"protocol"},
	rcmgr.KindService:  {"service"},
}

// unused returns an error that names a flag which says nothing about the question.
func (q *question) unused(c *cobra.Command) error {
	goes := append(slices.Clone(questionFlags[q.what]), "memory", "priority")
	for _, name := range []string{"direction", "endpoint", "fd", "peer", "protocol", "service"} {
		if c.Flags().Changed(name) && !slices.Contains(goes, name) {
			return usage("--%s does not go with %v: expected only --%s", name, q.what, strings.Join(goes, ", --"))
		}
	}
	if c.Flags().Changed("priority") && q.memory == 0 {
		return usage("--priority does not go without --memory: expected --memory SIZE, too")
	}
	return nil
}

// query returns the question as the query of a page.
func (q *question) query() url.Values {
	v := url.Values{"explain": {q.what.String()}, "direction": {q.direction}, "priority": {strconv.Itoa(q.priority)}}
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
