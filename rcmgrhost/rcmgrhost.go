// Package rcmgrhost makes a resource manager together with a go-libp2p host. One option
// of libp2p.New does everything that a host and its manager need from each other:
//
//	host, err := libp2p.New(rcmgrhost.Manager(nil))
//
// The manager is made with the host. Its metrics are registered where the host registers
// its own, its limits are compared with the host's connection manager, and it is closed
// with the host, or at once if libp2p.New fails. The package is apart from rcmgr so that
// a program that only needs a manager does not depend on all of go-libp2p.
package rcmgrhost

import (
	"errors"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	logging "github.com/libp2p/go-libp2p/gologshim"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"go.uber.org/fx"

	"github.com/weir-p2p/rcmgr"
)

var log = logging.Logger("rcmgr")

// Manager returns an option that gives a host a manager of its own, which is made as by
// rcmgr.New(limits, opts...). With nil, the manager has the default limits. The errors of
// rcmgr.New become errors of libp2p.New, which go-libp2p also writes to its log, twice.
//
// The metrics of all managers of the process are registered as by rcmgr.MustRegisterWith,
// on the registerer of libp2p.PrometheusRegisterer or, without that option, the default
// one. With libp2p.DisableMetrics nothing is registered. If the limits conflict with the
// host's connection manager (see rcmgr.Manager.CheckConnManager), a warning is logged. With
// rcmgr.WithRoom, room is made on the host (see rcmgr.Manager.AttachHost).
//
// The option may stand anywhere among the options of libp2p.New, and serves any number of
// hosts, each of which gets another manager. A host takes only one resource manager:
// libp2p.New returns an error if the option is given twice or beside
// libp2p.ResourceManager. Of returns the manager of a host.
func Manager(limits rcmgr.Limiter, opts ...rcmgr.Option) libp2p.Option {
	return made(func() (*rcmgr.Manager, error) { return rcmgr.New(limits, opts...) })
}

// ManagerForNode is Manager for limits that are computed for a node: the manager is made
// as by rcmgr.NewForNode(node, opts...).
func ManagerForNode(node rcmgr.NodeLimits, opts ...rcmgr.Option) libp2p.Option {
	return made(func() (*rcmgr.Manager, error) { return rcmgr.NewForNode(node, opts...) })
}

// Of returns the manager of a host, and reports whether there is one. It also finds a
// manager that was given to libp2p.ResourceManager, and one behind a Handle or behind any
// other wrapper that has a method Unwrap() network.ResourceManager.
func Of(h host.Host) (*rcmgr.Manager, bool) {
	return rcmgr.ManagerOf(h.Network().ResourceManager())
}

// made returns the option for a manager that new makes.
//
// A later option may fail, and may change what the manager depends on. Therefore the
// option only reserves the place in the configuration. The manager is made when all
// options have been applied, before go-libp2p constructs any part of the host. For that,
// the function that makes it is invoked in a module, because fx invokes the functions of
// modules before those of the application.
func made(new func() (*rcmgr.Manager, error)) libp2p.Option {
	return func(cfg *libp2p.Config) error {
		switch cfg.ResourceManager.(type) {
		case nil:
		case *pending:
			return errors.New("rcmgrhost: the option for a resource manager is given twice: leave one out")
		default:
			return errors.New("rcmgrhost: the host has another resource manager already, " +
				"from libp2p.ResourceManager or libp2p.Defaults: leave out that one or the option of rcmgrhost")
		}
		b := &building{cfg: cfg, new: new}
		cfg.ResourceManager = &pending{}
		return cfg.Apply(libp2p.WithFxOption(fx.Module("rcmgrhost", fx.Invoke(b.build)), fx.Invoke(b.attach), fx.ErrorHook(b)))
	}
}

// pending holds the place of a manager that is not made yet. Nothing calls its methods
// except Close, which go-libp2p calls if the configuration is wrong.
type pending struct{ network.ResourceManager }

func (*pending) Close() error { return nil }

// building is the making of one host's manager.
type building struct {
	cfg     *libp2p.Config
	new     func() (*rcmgr.Manager, error)
	manager *rcmgr.Manager // nil until it is made
}

// build makes the manager and gives it to the host.
func (b *building) build(host fx.Lifecycle) error {
	cfg := b.cfg
	if !cfg.DisableMetrics && cfg.PrometheusRegisterer != nil {
		rcmgr.MustRegisterWith(cfg.PrometheusRegisterer) // may panic, so it comes before the manager
	}
	m, err := b.new()
	if err != nil {
		return err
	}
	b.manager, cfg.ResourceManager = m, m
	// The first hook is the last to be stopped, after the swarm. It is also stopped if a
	// later one does not start, in which case go-libp2p does not close the manager.
	host.Append(fx.StopHook(m.Close))
	if cfg.ConnManager != nil {
		if err := m.CheckConnManager(cfg.ConnManager); err != nil {
			log.Warn("limits conflict with the connection manager", "err", err)
		}
	}
	return nil
}

// attach lets the manager make room on the host, which matters only with rcmgr.WithRoom. It is
// called after the swarm is made, and so after build.
func (b *building) attach(s *swarm.Swarm) {
	b.manager.AttachHost(attached{s, b.cfg.ConnManager})
}

// attached is what a manager needs of a host to make room.
type attached struct {
	swarm *swarm.Swarm
	cm    connmgr.ConnManager
}

func (a attached) Network() network.Network         { return a.swarm }
func (a attached) ConnManager() connmgr.ConnManager { return a.cm }

// HandleError closes the manager if go-libp2p fails to construct the rest of the host.
func (b *building) HandleError(error) {
	if b.manager != nil {
		b.manager.Close()
	}
}
