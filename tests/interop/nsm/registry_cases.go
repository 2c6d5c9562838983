package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/networkservicemesh/api/pkg/api/registry"
)

const (
	// soon is for what a registry does at once.
	soon = 5 * time.Second
	// shortLife is a token that lives long enough for a Register and short enough to wait for its end.
	shortLife = 6 * time.Second
	// longestLease is what NSM grants at most.
	longestLease = time.Minute
	// clockSlack is what a lease may be off by: times on the wire are absolute, and expiry is swept.
	clockSlack = 2 * time.Second
)

// registryCases are the cases that need nothing but a registry that takes registrations.
var registryCases = map[string]func(context.Context, *registryTarget) (any, error){
	"register":   registersAndFinds,
	"match":      matchesAsNSMDoes,
	"watch":      watchesChanges,
	"refresh":    refreshesBeforeTheEnd,
	"expire":     expiresWithoutRefresh,
	"unregister": unregisters,
	"stolen":     deniesAStolenName,
}

// newEndpoint is an endpoint of a service with one label.
func newEndpoint(name, service, color string) *registry.NetworkServiceEndpoint {
	return &registry.NetworkServiceEndpoint{
		Name:                name,
		NetworkServiceNames: []string{service},
		NetworkServiceLabels: map[string]*registry.NetworkServiceLabels{
			service: {Labels: map[string]string{"color": color, "app": "interop"}},
		},
		Url: "tcp://127.0.0.1:5",
	}
}

// checkRegistered compares an answer of Register with what was asked for.
func checkRegistered(answer, asked *registry.NetworkServiceEndpoint, owner *identity) error {
	left := time.Until(answer.GetExpirationTime().AsTime())
	switch {
	case answer.GetName() != asked.GetName():
		return fmt.Errorf("Register answers the name %q instead of %q", answer.GetName(), asked.GetName())
	case answer.GetUrl() != asked.GetUrl():
		return fmt.Errorf("Register answers the URL %q instead of %q", answer.GetUrl(), asked.GetUrl())
	case answer.GetExpirationTime() == nil:
		return fmt.Errorf("Register answers no expiration_time")
	case left <= 0 || left > longestLease+clockSlack:
		return fmt.Errorf("the lease is %s, and NSM grants %s at most", left, longestLease)
	case answer.GetInitialRegistrationTime() == nil:
		return fmt.Errorf("Register answers no initial_registration_time")
	case len(answer.GetPathIds()) == 0 || answer.GetPathIds()[0] != owner.id():
		return fmt.Errorf("path_ids are %v, and the first is to be the registrant, %s", answer.GetPathIds(), owner.id())
	}
	return nil
}

// registersAndFinds: NSM sdk, registry/chains/memory: a service and an endpoint are stored and found by name.
func registersAndFinds(ctx context.Context, target *registryTarget) (any, error) {
	service := unique("service")
	services, endpoints := target.services(ctx, target.owner), target.endpoints(ctx, target.owner)
	stored, err := services.Register(ctx, &registry.NetworkService{Name: service})
	if err != nil {
		return nil, fmt.Errorf("Register of a service: %w", err)
	}
	if stored.GetPayload() != "IP" {
		return nil, fmt.Errorf("a service without payload is stored with %q, and NSM says IP", stored.GetPayload())
	}
	asked := newEndpoint(unique("nse"), service, "red")
	answer, err := endpoints.Register(ctx, asked.Clone())
	if err != nil {
		return nil, fmt.Errorf("Register of an endpoint: %w", err)
	}
	if err := checkRegistered(answer, asked, target.owner); err != nil {
		return nil, err
	}
	found, err := findEndpoints(ctx, endpoints, &registry.NetworkServiceEndpoint{Name: asked.Name})
	if err != nil {
		return nil, err
	}
	if len(found) != 1 || !proto.Equal(found[0].GetExpirationTime(), answer.GetExpirationTime()) ||
		found[0].GetNetworkServiceLabels()[service].GetLabels()["color"] != "red" {
		return nil, fmt.Errorf("Find by name gives %v instead of the one endpoint", found)
	}
	listed, err := findServices(ctx, services, &registry.NetworkService{Name: service})
	if err != nil {
		return nil, err
	}
	if len(listed) != 1 || listed[0].GetPayload() != "IP" {
		return nil, fmt.Errorf("Find of the service gives %v", listed)
	}
	if _, err := endpoints.Register(ctx, &registry.NetworkServiceEndpoint{NetworkServiceNames: []string{service}}); err == nil {
		return nil, fmt.Errorf("an endpoint without a name is registered, and NSM refuses it")
	}
	return map[string]any{"lease_seconds": time.Until(answer.GetExpirationTime().AsTime()).Seconds(), "path_ids": answer.GetPathIds()}, nil
}

// matchesAsNSMDoes: NSM sdk, tools/matchutils: subset of services, subset of labels, part of the URL; no prefixes.
func matchesAsNSMDoes(ctx context.Context, target *registryTarget) (any, error) {
	endpoints := target.endpoints(ctx, target.owner)
	first, second := unique("service"), unique("service")
	red, blue := newEndpoint(unique("nse"), first, "red"), newEndpoint(unique("nse"), first, "blue")
	red.NetworkServiceNames = append(red.NetworkServiceNames, second)
	blue.Url = "tcp://127.0.0.1:6"
	for _, endpoint := range []*registry.NetworkServiceEndpoint{red, blue} {
		if _, err := endpoints.Register(ctx, endpoint.Clone()); err != nil {
			return nil, fmt.Errorf("Register of an endpoint: %w", err)
		}
	}
	labels := func(service string, pairs map[string]string) map[string]*registry.NetworkServiceLabels {
		return map[string]*registry.NetworkServiceLabels{service: {Labels: pairs}}
	}
	tables := []struct {
		what  string
		query *registry.NetworkServiceEndpoint
		wants []string
	}{
		{"one service", &registry.NetworkServiceEndpoint{NetworkServiceNames: []string{first}}, []string{red.Name, blue.Name}},
		{"both services", &registry.NetworkServiceEndpoint{NetworkServiceNames: []string{second, first}}, []string{red.Name}},
		{"a label", &registry.NetworkServiceEndpoint{NetworkServiceLabels: labels(first, map[string]string{"color": "blue"})}, []string{blue.Name}},
		{"a service that has no such label", &registry.NetworkServiceEndpoint{NetworkServiceLabels: labels(second, map[string]string{"color": "red"})}, nil},
		{"two labels", &registry.NetworkServiceEndpoint{NetworkServiceNames: []string{first}, NetworkServiceLabels: labels(first, map[string]string{"color": "red", "app": "interop"})}, []string{red.Name}},
		{"a part of the URL", &registry.NetworkServiceEndpoint{NetworkServiceNames: []string{first}, Url: "127.0.0.1:6"}, []string{blue.Name}},
		{"the beginning of a name", &registry.NetworkServiceEndpoint{Name: red.Name[:len(red.Name)-1]}, nil},
		{"a name and another service", &registry.NetworkServiceEndpoint{Name: blue.Name, NetworkServiceNames: []string{second}}, nil},
	}
	for _, table := range tables {
		found, err := findEndpoints(ctx, endpoints, table.query)
		if err != nil {
			return nil, fmt.Errorf("by %s: %w", table.what, err)
		}
		var names []string
		for _, endpoint := range found {
			names = append(names, endpoint.GetName())
		}
		slices.Sort(names)
		slices.Sort(table.wants)
		if !slices.Equal(names, table.wants) {
			return nil, fmt.Errorf("Find by %s gives %v, and NSM's rules give %v", table.what, names, table.wants)
		}
	}
	return map[string]any{"queries": len(tables)}, nil
}

// watchesChanges: NSM sdk, registry/common/memory: what is there, then every change, then the deletion with the object.
func watchesChanges(ctx context.Context, target *registryTarget) (any, error) {
	service := unique("service")
	endpoints := target.endpoints(ctx, target.owner)
	here := newEndpoint(unique("nse"), service, "red")
	if _, err := endpoints.Register(ctx, here.Clone()); err != nil {
		return nil, fmt.Errorf("Register of an endpoint: %w", err)
	}
	watch, err := watchEndpoints(ctx, target.endpoints(ctx, target.owner), &registry.NetworkServiceEndpoint{NetworkServiceNames: []string{service}})
	if err != nil {
		return nil, err
	}
	is := func(name string, deleted bool) func(*registry.NetworkServiceEndpointResponse) bool {
		return func(event *registry.NetworkServiceEndpointResponse) bool {
			return event.GetNetworkServiceEndpoint().GetName() == name && event.GetDeleted() == deleted
		}
	}
	if _, err := watch.until(soon, "what is there", is(here.Name, false)); err != nil {
		return nil, err
	}
	added := newEndpoint(unique("nse"), service, "blue")
	other := newEndpoint(unique("nse"), unique("service"), "blue")
	start := time.Now()
	for _, endpoint := range []*registry.NetworkServiceEndpoint{other, added} {
		if _, err := endpoints.Register(ctx, endpoint.Clone()); err != nil {
			return nil, fmt.Errorf("Register of an endpoint: %w", err)
		}
	}
	event, err := watch.until(soon, "an endpoint that is new", func(event *registry.NetworkServiceEndpointResponse) bool {
		return event.GetNetworkServiceEndpoint().GetName() != here.Name
	})
	if err != nil {
		return nil, err
	}
	if !is(added.Name, false)(event) {
		return nil, fmt.Errorf("the watch of %s says %v", service, event)
	}
	delay := time.Since(start)
	if _, err := endpoints.Unregister(ctx, added.Clone()); err != nil {
		return nil, fmt.Errorf("Unregister of an endpoint: %w", err)
	}
	event, err = watch.until(soon, "the deletion", is(added.Name, true))
	if err != nil {
		return nil, err
	}
	gone := event.GetNetworkServiceEndpoint()
	if gone.GetUrl() != added.Url || !slices.Equal(gone.GetNetworkServiceNames(), added.NetworkServiceNames) {
		return nil, fmt.Errorf("a deletion carries the full object, and this one has %v", gone)
	}
	return map[string]any{"delay_ms": delay.Milliseconds()}, nil
}

// refreshesBeforeTheEnd: NSM sdk, registry/common/refresh: a client registers again before its lease is over, and the
// time of the first registration stays.
func refreshesBeforeTheEnd(ctx context.Context, target *registryTarget) (any, error) {
	service := unique("service")
	endpoints := target.endpoints(ctx, target.owner.withTokens(shortLife))
	asked := newEndpoint(unique("nse"), service, "red")
	answer, err := endpoints.Register(ctx, asked.Clone())
	if err != nil {
		return nil, fmt.Errorf("Register of an endpoint: %w", err)
	}
	end := answer.GetExpirationTime().AsTime()
	if left := time.Until(end); left > shortLife+clockSlack {
		return nil, fmt.Errorf("the lease is %s, and the caller's token ends after %s", left, shortLife)
	}
	watch, err := watchEndpoints(ctx, target.endpoints(ctx, target.owner), &registry.NetworkServiceEndpoint{Name: asked.Name})
	if err != nil {
		return nil, err
	}
	event, err := watch.until(3*shortLife, "a later end", func(event *registry.NetworkServiceEndpointResponse) bool {
		return !event.GetDeleted() && event.GetNetworkServiceEndpoint().GetExpirationTime().AsTime().After(end)
	})
	if err != nil {
		return nil, err
	}
	if late := time.Since(end); late > 0 {
		return nil, fmt.Errorf("the refresh came %s after the lease was over", late)
	}
	before, after := answer.GetInitialRegistrationTime(), event.GetNetworkServiceEndpoint().GetInitialRegistrationTime()
	if !proto.Equal(before, after) {
		return nil, fmt.Errorf("initial_registration_time was %s and is %s after a refresh", before.AsTime(), after.AsTime())
	}
	return map[string]any{"refreshed_before_end_ms": time.Until(end).Milliseconds()}, nil
}

// expiresWithoutRefresh: NSM sdk, registry/common/expire: an endpoint whose process is gone leaves, and watchers hear.
func expiresWithoutRefresh(ctx context.Context, target *registryTarget) (any, error) {
	service := unique("service")
	life, die := context.WithCancel(ctx)
	defer die()
	asked := newEndpoint(unique("nse"), service, "red")
	answer, err := target.endpoints(life, target.owner.withTokens(shortLife)).Register(life, asked.Clone())
	if err != nil {
		return nil, fmt.Errorf("Register of an endpoint: %w", err)
	}
	die()
	end := answer.GetExpirationTime().AsTime()
	witness := target.endpoints(ctx, target.owner)
	watch, err := watchEndpoints(ctx, witness, &registry.NetworkServiceEndpoint{Name: asked.Name})
	if err != nil {
		return nil, err
	}
	_, err = watch.until(shortLife+soon, "the expiry", func(event *registry.NetworkServiceEndpointResponse) bool {
		return event.GetDeleted() && event.GetNetworkServiceEndpoint().GetName() == asked.Name
	})
	if err != nil {
		return nil, err
	}
	late := time.Since(end)
	if late > clockSlack {
		return nil, fmt.Errorf("the endpoint left %s after its lease was over", late)
	}
	found, err := findEndpoints(ctx, witness, &registry.NetworkServiceEndpoint{Name: asked.Name})
	if err != nil {
		return nil, err
	}
	if len(found) != 0 {
		return nil, fmt.Errorf("an expired endpoint is still found: %v", found)
	}
	return map[string]any{"late_ms": late.Milliseconds()}, nil
}

// unregisters: NSM sdk, registry/common/memory: gone at once; what is unknown is gone already.
func unregisters(ctx context.Context, target *registryTarget) (any, error) {
	service := unique("service")
	services, endpoints := target.services(ctx, target.owner), target.endpoints(ctx, target.owner)
	asked := newEndpoint(unique("nse"), service, "red")
	if _, err := services.Register(ctx, &registry.NetworkService{Name: service}); err != nil {
		return nil, fmt.Errorf("Register of a service: %w", err)
	}
	answer, err := endpoints.Register(ctx, asked.Clone())
	if err != nil {
		return nil, fmt.Errorf("Register of an endpoint: %w", err)
	}
	if _, err := endpoints.Unregister(ctx, answer.Clone()); err != nil {
		return nil, fmt.Errorf("Unregister of an endpoint: %w", err)
	}
	if found, err := findEndpoints(ctx, endpoints, &registry.NetworkServiceEndpoint{Name: asked.Name}); err != nil || len(found) != 0 {
		return nil, fmt.Errorf("after Unregister, Find gives %v, %w", found, err)
	}
	if _, err := services.Unregister(ctx, &registry.NetworkService{Name: service}); err != nil {
		return nil, fmt.Errorf("Unregister of a service: %w", err)
	}
	if found, err := findServices(ctx, services, &registry.NetworkService{Name: service}); err != nil || len(found) != 0 {
		return nil, fmt.Errorf("after Unregister, Find gives %v, %w", found, err)
	}
	if _, err := target.endpointsOnce(ctx, target.owner).Unregister(ctx, newEndpoint(unique("nse"), service, "red")); err != nil {
		return nil, fmt.Errorf("Unregister of an endpoint that never was: %w", err)
	}
	return nil, nil
}

// deniesAStolenName: NSM sdk, the client_allowed policy: a name belongs to who registered it, until it is given back.
func deniesAStolenName(ctx context.Context, target *registryTarget) (any, error) {
	service := unique("service")
	owner := target.endpoints(ctx, target.owner)
	asked := newEndpoint(unique("nse"), service, "red")
	if _, err := owner.Register(ctx, asked.Clone()); err != nil {
		return nil, fmt.Errorf("Register of an endpoint: %w", err)
	}
	if _, err := target.services(ctx, target.owner).Register(ctx, &registry.NetworkService{Name: service}); err != nil {
		return nil, fmt.Errorf("Register of a service: %w", err)
	}
	theft := asked.Clone()
	theft.Url = "tcp://127.0.0.1:666"
	_, stolen := target.endpointsOnce(ctx, target.thief).Register(ctx, theft)
	if err := denied("a stolen endpoint", stolen); err != nil {
		return nil, err
	}
	_, stolen = target.servicesOnce(ctx, target.thief).Register(ctx, &registry.NetworkService{Name: service, Payload: "ETHERNET"})
	if err := denied("a stolen service", stolen); err != nil {
		return nil, err
	}
	_, stolen = target.endpointsOnce(ctx, target.thief).Unregister(ctx, asked.Clone())
	if err := denied("Unregister of someone else's endpoint", stolen); err != nil {
		return nil, err
	}
	found, err := findEndpoints(ctx, owner, &registry.NetworkServiceEndpoint{Name: asked.Name})
	if err != nil {
		return nil, err
	}
	if len(found) != 1 || found[0].GetUrl() != asked.Url {
		return nil, fmt.Errorf("after the theft, Find gives %v", found)
	}
	if _, err := owner.Unregister(ctx, asked.Clone()); err != nil {
		return nil, fmt.Errorf("Unregister by the owner: %w", err)
	}
	if _, err := target.endpointsOnce(ctx, target.thief).Register(ctx, theft.Clone()); err != nil {
		return nil, fmt.Errorf("Register of a name that was given back: %w", err)
	}
	return nil, nil
}

// denied holds when an error is NSM's verdict on a caller who may not.
func denied(what string, err error) error {
	if err == nil {
		return fmt.Errorf("%s is accepted", what)
	}
	said := refusal(err)
	if said.Code() != codes.PermissionDenied || !strings.HasSuffix(strings.TrimSpace(said.Message()), "no sufficient privileges") {
		return fmt.Errorf("%s is refused with %s %q instead of PermissionDenied, \"… no sufficient privileges\"", what, said.Code(), said.Message())
	}
	return nil
}
