package main

import (
	"context"
	"fmt"

	"github.com/networkservicemesh/sdk/pkg/registry/common/dnsresolve"
)

// floatingDomain has a registry and nothing else.
const floatingDomain = "floating.test"

// segmentsOfNSM are the processes of NSM between two domains: client, manager, forwarder, proxy, proxy, manager,
// forwarder, endpoint.
const segmentsOfNSM = 8

// selfCheck runs every case against NSM's own parts: a case that fails there says nothing about Carrick.
func selfCheck(ctx context.Context, chosen string) error {
	registries, err := ownRegistry(ctx)
	if err != nil {
		return err
	}
	connections, err := ownDomains(ctx)
	if err != nil {
		return err
	}
	if err := runAll(ctx, chosen, registryCases, registries); err != nil {
		return err
	}
	if err := runAll(ctx, chosen, connectionCases, connections); err != nil {
		return err
	}
	there, back := *connections, *connections
	back.domain, back.registry, back.endpoint = "cluster1", connections.manager, connections.client
	// To a passthrough endpoint in the second domain, and from it back to one in the first.
	there.segments = 2*segmentsOfNSM - 1
	if err := runAll(ctx, chosen, map[string]func(context.Context, *links) (any, error){"chain": passesThroughDomains},
		&links{ways: []*connectionTarget{&there, &back}}); err != nil {
		return err
	}
	for _, plain := range []bool{false, true} {
		floating := *connections
		floating.domain, floating.floats, floating.plainServices = floatingDomain, floatingDomain, plain
		cases := map[string]func(context.Context, *connectionTarget) (any, error){
			"heal": healsAfterTheEndpoint, "request": requestsRefreshesAndCloses,
		}
		if err := runAll(ctx, chosen, cases, &floating); err != nil {
			return fmt.Errorf("floating: %w", err)
		}
	}
	return nil
}

// runAll runs cases in the order of their names; `all` chooses all of them.
func runAll[Target any](ctx context.Context, chosen string, cases map[string]func(context.Context, Target) (any, error), target Target) error {
	for _, name := range sorted(cases) {
		if chosen != "all" && chosen != name {
			continue
		}
		if err := run(ctx, name, cases, target); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// ownRegistry is NSM's memory registry with two callers.
func ownRegistry(ctx context.Context) (*registryTarget, error) {
	authority, err := newAuthority("nsm.test")
	if err != nil {
		return nil, err
	}
	ids, err := authority.issueAll("/registry", "/owner", "/thief")
	if err != nil {
		return nil, err
	}
	listener, err := listen("")
	if err != nil {
		return nil, err
	}
	part := serveRegistry(ctx, ids[0], listener, nil)
	return &registryTarget{url: part.url, owner: ids[1], thief: ids[2]}, nil
}

// ownDomains are two domains of NSM's parts that trust each other.
func ownDomains(ctx context.Context) (*connectionTarget, error) {
	one, err := newAuthority("nsm.cluster1")
	if err != nil {
		return nil, err
	}
	two, err := newAuthority("nsm.cluster2")
	if err != nil {
		return nil, err
	}
	resolver := newResolver()
	near, err := ownDomain(ctx, "cluster1", resolver, one, two)
	if err != nil {
		return nil, err
	}
	far, err := ownDomain(ctx, "cluster2", resolver, two, one)
	if err != nil {
		return nil, err
	}
	if err := ownFloating(ctx, resolver, one, two); err != nil {
		return nil, err
	}
	client, err := one.issue("/client", two)
	if err != nil {
		return nil, err
	}
	endpoint, err := two.issue("/endpoint", one)
	if err != nil {
		return nil, err
	}
	return &connectionTarget{
		manager: near.manager.url, registry: far.manager.url, domain: "cluster2", segments: segmentsOfNSM, host: loopback,
		client: client, endpoint: endpoint,
	}, nil
}

// ownFloating is a registry with which endpoints of both domains may register.
func ownFloating(ctx context.Context, resolver dnsresolve.Resolver, one, two *authority) error {
	own, err := one.issue("/floating-registry", two)
	if err != nil {
		return err
	}
	listener, err := listen("")
	if err != nil {
		return err
	}
	return announce(resolver, floatingDomain, serveRegistry(ctx, own, listener, nil).url, nil)
}

// ownDomain is a domain of NSM's parts in this process, known to the resolver.
func ownDomain(ctx context.Context, name string, resolver dnsresolve.Resolver, own, other *authority) (*domain, error) {
	built, err := serveDomain(ctx, &plan{
		name: name, resolver: resolver,
		issue: func(role string) (*identity, error) { return own.issue("/"+role, other) },
	})
	if err != nil {
		return nil, err
	}
	return built, announce(resolver, name, built.registry, built.proxy)
}

func (a *authority) issueAll(paths ...string) ([]*identity, error) {
	var all []*identity
	for _, path := range paths {
		one, err := a.issue(path)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}
