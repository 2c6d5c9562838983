package main

import (
	"context"
	"net"
	"path/filepath"
	"time"

	"github.com/networkservicemesh/sdk/pkg/registry/chains/memory"
	registryauthorize "github.com/networkservicemesh/sdk/pkg/registry/common/authorize"
)

// serveRegistryCommand serves NSM's memory registry until it is told to stop.
func serveRegistryCommand(ctx context.Context, args []string) error {
	flags := newFlags("serve-registry", "own")
	address := flags.set.String("listen", "127.0.0.1:0", "HOST:PORT to listen on")
	open := flags.set.Bool("open", false, "judge no registrations, which takes the longer the more there are, and keep them for an hour")
	if err := flags.set.Parse(args); err != nil {
		return err
	}
	own, err := flags.identity("own")
	if err != nil {
		return err
	}
	listener, err := listen(*address)
	if err != nil {
		return err
	}
	var more []memory.Option
	if *open {
		anybody := registryauthorize.NewNetworkServiceEndpointRegistryServer(registryauthorize.Any())
		more = []memory.Option{memory.WithAuthorizeNSERegistryServer(anybody), memory.WithDefaultExpiration(time.Hour)}
	}
	part := serveRegistry(ctx, own, listener, nil, more...)
	if err := report(map[string]any{"serves": "registry", "url": part.url.String()}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// serveDomainCommand serves a domain of NSM's parts until it is told to stop.
func serveDomainCommand(ctx context.Context, args []string) error {
	flags := newFlags("serve-domain")
	name := flags.set.String("name", "", "the domain")
	host := flags.set.String("host", "", "address on which the parts listen, on NSM's ports")
	ids := flags.set.String("ids", "", "directory with one of svid.pem and key.pem for each part")
	dns := flags.set.String("dns", "", "HOST:PORT of the DNS server that NSM's registry-proxy asks")
	registry := flags.set.String("registry", "", "tcp://HOST:PORT of what takes the place of the registry")
	proxy := flags.set.String("proxy", "", "tcp://HOST:PORT of what takes the place of nsmgr-proxy, and of the registry-proxy")
	keep := flags.set.Bool("registry-proxy", false, "with -proxy: the registry-proxy stays")
	if err := flags.set.Parse(args); err != nil {
		return err
	}
	plan := &plan{
		name: *name, host: *host, resolver: dnsAt(*dns), keepRegistryProxy: *keep,
		issue: func(role string) (*identity, error) {
			dir := filepath.Join(*ids, role)
			return loadIdentity(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "key.pem"), flags.trust)
		},
	}
	var err error
	if *registry != "" {
		if plan.registry, err = parseURL("registry", *registry); err != nil {
			return err
		}
	}
	if *proxy != "" {
		if plan.proxy, err = parseURL("proxy", *proxy); err != nil {
			return err
		}
	}
	if _, err := serveDomain(ctx, plan); err != nil {
		return err
	}
	if err := report(map[string]any{"serves": "domain", "name": *name}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// dnsAt asks one DNS server, as NSM's registry-proxy asks the one of its pod.
func dnsAt(server string) *net.Resolver {
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, server)
		},
	}
}
