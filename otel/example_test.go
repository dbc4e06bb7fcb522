package rcmgrotel_test

import (
	"context"
	"fmt"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/weir-p2p/rcmgr"
	rcmgrotel "github.com/weir-p2p/rcmgr/otel"
)

func Example() {
	rm, err := rcmgr.New(nil)
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	producer, err := rcmgrotel.NewFor(rm) // or New, for all managers of the process
	if err != nil {
		panic(err)
	}
	// A program has a PeriodicReader here, with its exporter.
	reader := metric.NewManualReader(metric.WithProducer(producer))
	provider := metric.NewMeterProvider(metric.WithReader(reader))
	defer provider.Shutdown(context.Background())

	conn, err := rm.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/192.0.2.1/tcp/4001"))
	if err != nil {
		panic(err)
	}
	defer conn.Done()

	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		panic(err)
	}
	for _, m := range all.ScopeMetrics[0].Metrics {
		if m.Name == "libp2p_rcmgr_fds" {
			for _, p := range m.Data.(metricdata.Gauge[float64]).DataPoints {
				scope, _ := p.Attributes.Value("scope")
				fmt.Println(m.Name, scope.AsString(), p.Value)
			}
		}
	}
	// Output:
	// libp2p_rcmgr_fds system 1
	// libp2p_rcmgr_fds transient 1
}
