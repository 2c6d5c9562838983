package main

import (
	"context"
	"fmt"
)

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
	return runAll(ctx, chosen, connectionCases, connections)
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
	near, err := serveDomain(ctx, "cluster1", resolver, func(path string) (*identity, error) { return one.issue(path, two) })
	if err != nil {
		return nil, err
	}
	far, err := serveDomain(ctx, "cluster2", resolver, func(path string) (*identity, error) { return two.issue(path, one) })
	if err != nil {
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
