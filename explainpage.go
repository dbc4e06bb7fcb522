package rcmgr

// A question to Explain as the query of the page's address:
//
//	?explain=stream&direction=inbound&peer=12D3Koo…&protocol=/ipfs/ping/1.0.0
//
// The keys are the names of ExplainRequest's fields in lower case, but explain stands for
// Kind and fd for UseFD.

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
)

// questionOf reads a question from a query. An error names the key.
func questionOf(query url.Values) (q ExplainRequest, err error) {
	q.Protocol, q.Service = protocol.ID(query.Get("protocol")), query.Get("service")
	q.UseFD = query.Get("fd") != ""
	for _, one := range []struct {
		key      string
		expected string
		read     func(string) error
	}{
		{"explain", "conn, stream, system, transient, peer, protocol or service", func(s string) error {
			return q.Kind.UnmarshalText([]byte(s))
		}},
		{"direction", "inbound or outbound", func(s string) error {
			names := []string{network.DirInbound: labelInbound, network.DirOutbound: labelOutbound}
			i := slices.Index(names, strings.ToLower(s))
			q.Direction = network.Direction(max(0, i))
			if i < 1 {
				return strconv.ErrSyntax
			}
			return nil
		}},
		{"endpoint", "a multiaddr", func(s string) (err error) {
			q.Endpoint, err = multiaddr.NewMultiaddr(s)
			return err
		}},
		{"peer", "a peer ID", func(s string) (err error) {
			q.Peer, err = peer.Decode(s)
			return err
		}},
		{"memory", "a number of bytes", func(s string) (err error) {
			q.Memory, err = strconv.ParseInt(s, 10, 64)
			return err
		}},
		{"priority", "a number from 0 to 255", func(s string) error {
			n, err := strconv.ParseUint(s, 10, 8)
			q.Priority = uint8(n)
			return err
		}},
	} {
		if text := query.Get(one.key); text != "" {
			if err := one.read(text); err != nil {
				return ExplainRequest{}, fmt.Errorf("%s is %q, expected %s", one.key, text, one.expected)
			}
		}
	}
	return q, nil
}
