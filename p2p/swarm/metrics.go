package swarm

import (
	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Collectors returns the metrics of this swarm.
func (s *Swarm) Collectors() []prometheus.Collector {
	all := prometheus.NewRegistry()
	to := promauto.With(all)
	gauge := func(name, help string, labels prometheus.Labels, get func() int) {
		to.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "grange", Subsystem: "swarm", Name: name, Help: help, ConstLabels: labels},
			func() float64 { return float64(get()) })
	}
	gauge("table_members", "Members in the routing table of the DHT.", nil, func() int { return s.dht.RoutingTable().Size() })
	gauge("announced_roots", "Roots that this member announces.", nil, s.announced.count)
	gauge("banned_members", "Members that are banned.", nil, s.ledger.Bans)
	gauge("guests", "Connections with peers that have not proved that they are members.", nil, func() int { return int(s.guests.Load()) })
	gauge("silent_bootstraps", "Bootstrap members that do not answer.", nil, func() int { return int(s.silent.Load()) })
	for _, via := range []transport{viaTCP, viaQUIC, viaRelay} {
		gauge("connections", "Open connections, by transport.", prometheus.Labels{"transport": via.String()},
			func() int { return countConns(s.host.Network().Conns(), via) })
	}
	return []prometheus.Collector{all}
}

// transport is what carries a connection, in the order in which it is preferred.
type transport int

const (
	viaTCP transport = iota
	viaQUIC
	viaRelay
)

// String returns the label of the transport.
func (t transport) String() string { return [...]string{"tcp", "quic", "relay"}[t] }

func transportOf(a ma.Multiaddr) transport {
	via := viaQUIC
	ma.ForEach(a, func(c ma.Component) bool {
		switch c.Protocol().Code {
		case ma.P_TCP:
			via = viaTCP
		case ma.P_CIRCUIT: // comes after the transport that reaches the relay
			via = viaRelay
		}
		return true
	})
	return via
}

func countConns(conns []network.Conn, via transport) (n int) {
	for _, c := range conns {
		if transportOf(c.RemoteMultiaddr()) == via {
			n++
		}
	}
	return n
}
