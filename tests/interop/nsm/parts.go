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
// to proxy, when there is one.
func serveRegistry(ctx context.Context, own *identity, listener net.Listener, proxy *url.URL) *part {
	return serve(ctx, own, listener, func(ctx context.Context, server *grpc.Server) {
		memory.NewServer(ctx, own.tokens(),
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
		).Register(server)
	})
}

// domain is a domain of NSM's own parts: registry, registry-proxy, nsmgr-proxy, one node with manager and forwarder.
type domain struct {
	name     string
	registry *part
	proxy    *part
	manager  *part
}

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
func serveDomain(ctx context.Context, name string, resolver dnsresolve.Resolver, issue func(path string) (*identity, error)) (*domain, error) {
	ids := map[string]*identity{}
	listeners := map[string]net.Listener{}
	for _, role := range []string{"registry", "registry-proxy", "nsmgr-proxy", "nsmgr", "forwarder"} {
		var err error
		if ids[role], err = issue("/" + role); err != nil {
			return nil, err
		}
		if listeners[role], err = listen(""); err != nil {
			return nil, err
		}
	}
	proxyURL := urlOf(listeners["nsmgr-proxy"])
	built := &domain{name: name}
	built.registry = serveRegistry(ctx, ids["registry"], listeners["registry"], proxyURL)

	own := ids["registry-proxy"]
	proxydnsPart := serve(ctx, own, listeners["registry-proxy"], func(ctx context.Context, server *grpc.Server) {
		proxydns.NewServer(ctx, own.tokens(), resolver, proxydns.WithDialOptions(own.dialOptions()...)).Register(server)
	})

	own = ids["nsmgr-proxy"]
	built.proxy = serve(ctx, own, listeners["nsmgr-proxy"], func(ctx context.Context, server *grpc.Server) {
		nsmgrproxy.NewServer(ctx, built.registry.url, proxydnsPart.url, own.tokens(),
			nsmgrproxy.WithName("nsmgr-proxy-"+name),
			nsmgrproxy.WithListenOn(proxyURL),
			nsmgrproxy.WithDialOptions(own.dialOptions()...),
			nsmgrproxy.WithDialTimeout(dialTimeout),
		).(interface{ Register(*grpc.Server) }).Register(server)
	})

	own = ids["nsmgr"]
	built.manager = serve(ctx, own, listeners["nsmgr"], func(ctx context.Context, server *grpc.Server) {
		nsmgr.NewServer(ctx, own.tokens(),
			nsmgr.WithName("nsmgr-"+name),
			nsmgr.WithURL(urlOf(listeners["nsmgr"]).String()),
			nsmgr.WithRegistry(built.registry.url),
			nsmgr.WithDialOptions(own.dialOptions()...),
			nsmgr.WithDialTimeout(dialTimeout),
			nsmgr.WithAuthorizeServer(authorize.NewServer(authorize.WithPolicies(serverPolicies...))),
		).(interface{ Register(*grpc.Server) }).Register(server)
	})

	if err := serveForwarder(ctx, name, ids["forwarder"], listeners["forwarder"], built.manager.url); err != nil {
		return nil, err
	}
	return built, announce(resolver, name, built.registry.url, built.proxy.url)
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
