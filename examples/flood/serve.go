package main

// What an operator would look at while the attack lasts.

import (
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/weir-p2p/rcmgr"
)

// serve shows a manager on an address until the server is closed. The server's
// Addr is where it really listens.
func serve(addr string, m *rcmgr.Manager) (*http.Server, error) {
	reg := prometheus.NewRegistry()
	if err := m.RegisterWith(reg); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/", rcmgr.Handler(m))
	mux.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	s := &http.Server{Addr: l.Addr().String(), Handler: mux}
	go s.Serve(l)
	return s, nil
}
