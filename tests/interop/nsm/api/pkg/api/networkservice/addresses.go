package networkservice

import (
	"errors"
	"net"
)

// GetPrefixIPNet is the route's prefix, nil where it does not parse.
func (x *Route) GetPrefixIPNet() *net.IPNet {
	_, prefix, err := net.ParseCIDR(x.GetPrefix())
	if err != nil {
		return nil
	}
	return prefix
}

// GetSrcIPNets are the client's addresses; what does not parse is left out.
func (x *IPContext) GetSrcIPNets() []*net.IPNet { return networks(x.GetSrcIpAddrs()) }

// GetDstIPNets are the endpoint's addresses; what does not parse is left out.
func (x *IPContext) GetDstIPNets() []*net.IPNet { return networks(x.GetDstIpAddrs()) }

// networks keeps the address itself, not the network's first one.
func networks(addresses []string) []*net.IPNet {
	var nets []*net.IPNet
	for _, address := range addresses {
		if ip, prefix, err := net.ParseCIDR(address); err == nil {
			nets = append(nets, &net.IPNet{IP: ip, Mask: prefix.Mask})
		}
	}
	return nets
}

// IsValid tells what is wrong with a request for prefixes.
func (x *ExtraPrefixRequest) IsValid() error {
	family := x.GetAddrFamily()
	switch {
	case x == nil || family == nil:
		return errors.New("a request for prefixes names no address family")
	case x.GetRequiredNumber() == 0 && x.GetRequestedNumber() == 0:
		return errors.New("a request for prefixes asks for none")
	case x.GetRequiredNumber() > x.GetRequestedNumber():
		return errors.New("a request for prefixes requires more than it asks for")
	}
	bits := uint32(8 * net.IPv6len)
	if family.GetFamily() == IpFamily_IPV4 {
		bits = 8 * net.IPv4len
	}
	if length := x.GetPrefixLen(); length == 0 || length > bits {
		return errors.New("a request for prefixes has a length that its address family has not")
	}
	return nil
}
