package main

// The pages that an operator looks at during the attack.

import (
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/weir-p2p/rcmgr"
)

// serve serves a manager's pages on l until the server is closed, which closes l. The
// server's Addr is the address of l.
func serve(l net.Listener, m *rcmgr.Manager) (*http.Server, error) {
	reg := prometheus.NewRegistry()
	if err := m.RegisterWith(reg); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/", rcmgr.Handler(m))
	mux.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	s := &http.Server{Addr: l.Addr().String(), Handler: mux}
	go s.Serve(l)
	return s, nil
}
