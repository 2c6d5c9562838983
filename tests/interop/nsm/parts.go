package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"time"

	"google.golang.org/grpc"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	registryapi "github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/client"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/endpoint"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/nsmgr"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/nsmgrproxy"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/authorize"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/connect"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/discover"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanismtranslation"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/roundrobin"
	registryclient "github.com/networkservicemesh/sdk/pkg/registry/chains/client"
	"github.com/networkservicemesh/sdk/pkg/registry/chains/memory"
	"github.com/networkservicemesh/sdk/pkg/registry/chains/proxydns"
	registryauthorize "github.com/networkservicemesh/sdk/pkg/registry/common/authorize"
	"github.com/networkservicemesh/sdk/pkg/registry/common/dnsresolve"
	"github.com/networkservicemesh/sdk/pkg/tools/sandbox"
)

// dialTimeout is what a hop of an NSM domain may take to connect. NSM's own 300 ms are for a quiet machine.
const dialTimeout = 2 * time.Second

// Policies that NSM's programs enforce by default; the files are embedded in the sdk.
var (
	serverPolicies         = []string{"etc/nsm/opa/common/.*.rego", "etc/nsm/opa/server/.*.rego"}
	clientPolicies         = []string{"etc/nsm/opa/common/.*.rego", "etc/nsm/opa/client/.*.rego"}
	registryServerPolicies = append([]string{"etc/nsm/opa/registry/.*.rego"}, serverPolicies...)
	registryClientPolicies = append([]string{"etc/nsm/opa/registry/.*.rego"}, clientPolicies...)
)

// part is a gRPC server of NSM's, with mutual TLS.
type part struct {
	url    *url.URL
	server *grpc.Server
	stop   context.CancelFunc
}

// serve starts a server on an address of its own or the one given, and stops with the context.
func serve(ctx context.Context, own *identity, listener net.Listener, register func(context.Context, *grpc.Server)) *part {
	ctx, stop := context.WithCancel(ctx)
	part := &part{
		url:    &url.URL{Scheme: "tcp", Host: listener.Addr().String()},
		server: grpc.NewServer(own.serverOptions()...),
		stop:   stop,
	}
	register(ctx, part.server)
	go func() { _ = part.server.Serve(listener) }()
	context.AfterFunc(ctx, part.server.Stop)
	return part
}

// loopback is where parts listen that nobody else has to reach.
const loopback = "127.0.0.1"

// listen reserves an address; the empty one means any port of loopback.
func listen(address string) (net.Listener, error) {
	if address == "" {
		address = net.JoinHostPort(loopback, "0")
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", address, err)
	}
	return listener, nil
}

// urlOf is where a listener is reached.
func urlOf(listener net.Listener) *url.URL {
	return &url.URL{Scheme: "tcp", Host: listener.Addr().String()}
}

// serveRegistry starts NSM's memory registry as its own program does, with the default policies. Names with a domain go
// to proxy, when there is one. Further options count more.
func serveRegistry(ctx context.Context, own *identity, listener net.Listener, proxy *url.URL, more ...memory.Option) *part {
	return serve(ctx, own, listener, func(ctx context.Context, server *grpc.Server) {
		options := []memory.Option{
			memory.WithProxyRegistryURL(proxy),
			memory.WithDialOptions(own.dialOptions()...),
			memory.WithAuthorizeNSRegistryServer(registryauthorize.NewNetworkServiceRegistryServer(
				registryauthorize.WithPolicies(registryServerPolicies...))),
			memory.WithAuthorizeNSERegistryServer(registryauthorize.NewNetworkServiceEndpointRegistryServer(
				registryauthorize.WithPolicies(registryServerPolicies...))),
			memory.WithAuthorizeNSRegistryClient(registryauthorize.NewNetworkServiceRegistryClient(
				registryauthorize.WithPolicies(registryClientPolicies...))),
			memory.WithAuthorizeNSERegistryClient(registryauthorize.NewNetworkServiceEndpointRegistryClient(
				registryauthorize.WithPolicies(registryClientPolicies...))),
		}
		memory.NewServer(ctx, own.tokens(), append(options, more...)...).Register(server)
	})
}

// has says whether a part is NSM's.
func (p *plan) has(role string) bool {
	switch role {
	case "registry":
		return p.registry == nil
	case "nsmgr-proxy":
		return p.proxy == nil
	case "registry-proxy":
		return p.proxy == nil || p.keepRegistryProxy
	default:
		return true
	}
}

// domain is a domain of NSM's own parts: registry, registry-proxy, nsmgr-proxy, one node with manager and forwarder.
type domain struct {
	name     string
	registry *url.URL
	proxy    *url.URL
	manager  *part
}

// plan says what a domain is made of.
type plan struct {
	name string
	// host is where the parts listen: on the ports of NSM's programs, or on any where there is none.
	host string
	// registry takes the place of NSM's, where it is given.
	registry *url.URL
	// proxy takes the place of nsmgr-proxy, where it is given, and of the registry-proxy, unless that is kept.
	proxy             *url.URL
	keepRegistryProxy bool

	resolver dnsresolve.Resolver
	// issue makes or finds the SVID of a part.
	issue func(role string) (*identity, error)
}

// roles are the parts of a domain, with the ports of NSM's deployments.
var roles = map[string]string{"nsmgr": "5001", "registry": "5002", "forwarder": "5003", "nsmgr-proxy": "5004", "registry-proxy": "5005"}

// resolver answers for every domain of the process, as their DNS servers would.
func newResolver() dnsresolve.Resolver { return sandbox.NewFakeResolver() }

// announce makes the two names of a domain known that NSM looks up.
func announce(resolver dnsresolve.Resolver, name string, registry, proxy *url.URL) error {
	if err := sandbox.AddSRVEntry(resolver, name, dnsresolve.DefaultRegistryService, registry); err != nil {
		return err
	}
	if proxy == nil {
		return nil
	}
	return sandbox.AddSRVEntry(resolver, name, dnsresolve.DefaultNsmgrProxyService, proxy)
}

// serveDomain starts the parts of a domain, each with an SVID of its own, and one node.
func serveDomain(ctx context.Context, plan *plan) (*domain, error) {
	ids := map[string]*identity{}
	listeners := map[string]net.Listener{}
	for role, port := range roles {
		if !plan.has(role) {
			continue
		}
		var err error
		if ids[role], err = plan.issue(role); err != nil {
			return nil, err
		}
		address := ""
		if plan.host != "" {
			address = net.JoinHostPort(plan.host, port)
		}
		if listeners[role], err = listen(address); err != nil {
			return nil, err
		}
	}
	built := &domain{name: plan.name, registry: plan.registry, proxy: plan.proxy}
	if plan.has("nsmgr-proxy") {
		built.proxy = urlOf(listeners["nsmgr-proxy"])
	}
	if plan.has("registry") {
		built.registry = serveRegistry(ctx, ids["registry"], listeners["registry"], built.proxy).url
	}
	if plan.has("registry-proxy") {
		serveRegistryProxy(ctx, ids["registry-proxy"], listeners["registry-proxy"], plan.resolver)
	}
	if plan.has("nsmgr-proxy") {
		serveProxy(ctx, plan.name, ids["nsmgr-proxy"], listeners["nsmgr-proxy"], built.registry, urlOf(listeners["registry-proxy"]))
	}

	own := ids["nsmgr"]
	built.manager = serve(ctx, own, listeners["nsmgr"], func(ctx context.Context, server *grpc.Server) {
		nsmgr.NewServer(ctx, own.tokens(),
			nsmgr.WithName("nsmgr-"+plan.name),
			nsmgr.WithURL(urlOf(listeners["nsmgr"]).String()),
			nsmgr.WithRegistry(built.registry),
			nsmgr.WithDialOptions(own.dialOptions()...),
			nsmgr.WithDialTimeout(dialTimeout),
			nsmgr.WithAuthorizeNSRegistryServer(registryauthorize.NewNetworkServiceRegistryServer(
				registryauthorize.WithPolicies(registryServerPolicies...))),
			nsmgr.WithAuthorizeNSERegistryServer(registryauthorize.NewNetworkServiceEndpointRegistryServer(
				registryauthorize.WithPolicies(registryServerPolicies...))),
			nsmgr.WithAuthorizeNSRegistryClient(registryauthorize.NewNetworkServiceRegistryClient(
				registryauthorize.WithPolicies(registryClientPolicies...))),
			nsmgr.WithAuthorizeNSERegistryClient(registryauthorize.NewNetworkServiceEndpointRegistryClient(
				registryauthorize.WithPolicies(registryClientPolicies...))),
			nsmgr.WithAuthorizeServer(authorize.NewServer(authorize.WithPolicies(serverPolicies...))),
		).(interface{ Register(*grpc.Server) }).Register(server)
	})
	return built, serveForwarder(ctx, plan.name, ids["forwarder"], listeners["forwarder"], built.manager.url)
}

// serveRegistryProxy starts registry-proxy-dns.
func serveRegistryProxy(ctx context.Context, own *identity, listener net.Listener, resolver dnsresolve.Resolver) {
	serve(ctx, own, listener, func(ctx context.Context, server *grpc.Server) {
		proxydns.NewServer(ctx, own.tokens(), resolver,
			proxydns.WithDialOptions(own.dialOptions()...),
			proxydns.WithAuthorizeNSRegistryServer(registryauthorize.NewNetworkServiceRegistryServer(
				registryauthorize.WithPolicies(registryServerPolicies...))),
			proxydns.WithAuthorizeNSERegistryServer(registryauthorize.NewNetworkServiceEndpointRegistryServer(
				registryauthorize.WithPolicies(registryServerPolicies...))),
			proxydns.WithAuthorizeNSRegistryClient(registryauthorize.NewNetworkServiceRegistryClient(
				registryauthorize.WithPolicies(registryClientPolicies...))),
			proxydns.WithAuthorizeNSERegistryClient(registryauthorize.NewNetworkServiceEndpointRegistryClient(
				registryauthorize.WithPolicies(registryClientPolicies...))),
		).Register(server)
	})
}

// serveProxy starts nsmgr-proxy.
func serveProxy(ctx context.Context, name string, own *identity, listener net.Listener, registry, registryProxy *url.URL) {
	serve(ctx, own, listener, func(ctx context.Context, server *grpc.Server) {
		nsmgrproxy.NewServer(ctx, registry, registryProxy, own.tokens(),
			nsmgrproxy.WithName("nsmgr-proxy-"+name),
			nsmgrproxy.WithListenOn(urlOf(listener)),
			nsmgrproxy.WithDialOptions(own.dialOptions()...),
			nsmgrproxy.WithDialTimeout(dialTimeout),
			nsmgrproxy.WithAuthorizeNSRegistryServer(registryauthorize.NewNetworkServiceRegistryServer(
				registryauthorize.WithPolicies(registryServerPolicies...))),
			nsmgrproxy.WithAuthorizeNSERegistryServer(registryauthorize.NewNetworkServiceEndpointRegistryServer(
				registryauthorize.WithPolicies(registryServerPolicies...))),
			nsmgrproxy.WithAuthorizeNSRegistryClient(registryauthorize.NewNetworkServiceRegistryClient(
				registryauthorize.WithPolicies(registryClientPolicies...))),
			nsmgrproxy.WithAuthorizeNSERegistryClient(registryauthorize.NewNetworkServiceEndpointRegistryClient(
				registryauthorize.WithPolicies(registryClientPolicies...))),
		).(interface{ Register(*grpc.Server) }).Register(server)
	})
}

// serveForwarder starts the control plane of a forwarder and registers it with its manager.
func serveForwarder(ctx context.Context, domain string, own *identity, listener net.Listener, manager *url.URL) error {
	name := "forwarder-" + domain
	services := registryclient.NewNetworkServiceRegistryClient(ctx,
		registryclient.WithClientURL(manager), registryclient.WithDialOptions(own.dialOptions()...), registryclient.WithDialTimeout(dialTimeout))
	endpoints := registryclient.NewNetworkServiceEndpointRegistryClient(ctx,
		registryclient.WithClientURL(manager), registryclient.WithDialOptions(own.dialOptions()...), registryclient.WithDialTimeout(dialTimeout))
	forwarder := serve(ctx, own, listener, func(ctx context.Context, server *grpc.Server) {
		onward := client.NewClient(ctx,
			client.WithName(name),
			client.WithAdditionalFunctionality(mechanismtranslation.NewClient()),
			client.WithDialOptions(own.dialOptions()...),
			client.WithDialTimeout(dialTimeout),
			client.WithoutRefresh(),
		)
		endpoint.NewServer(ctx, own.tokens(),
			endpoint.WithName(name),
			endpoint.WithAuthorizeServer(authorize.NewServer(authorize.WithPolicies(serverPolicies...))),
			endpoint.WithAdditionalFunctionality(
				discover.NewServer(services, endpoints), roundrobin.NewServer(), connect.NewServer(onward)),
		).Register(server)
	})
	_, err := endpoints.Register(ctx, &registryapi.NetworkServiceEndpoint{
		Name:                name,
		NetworkServiceNames: []string{"forwarder"},
		NetworkServiceLabels: map[string]*registryapi.NetworkServiceLabels{
			"forwarder": {Labels: map[string]string{"p2p": "true"}},
		},
		Url: forwarder.url.String(),
	})
	if err != nil {
		return fmt.Errorf("the forwarder of %s does not get registered: %w", domain, err)
	}
	return nil
}

// serveEndpoint starts an endpoint of NSM's with the default policies and what it does beyond them.
func serveEndpoint(ctx context.Context, name string, own *identity, listener net.Listener, does ...networkservice.NetworkServiceServer) *part {
	return serve(ctx, own, listener, func(ctx context.Context, server *grpc.Server) {
		endpoint.NewServer(ctx, own.tokens(),
			endpoint.WithName(name),
			endpoint.WithAuthorizeServer(authorize.NewServer(authorize.WithPolicies(serverPolicies...))),
			endpoint.WithAdditionalFunctionality(does...),
		).Register(server)
	})
}
