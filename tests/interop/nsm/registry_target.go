package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/status"

	"github.com/networkservicemesh/api/pkg/api/registry"
	registryclient "github.com/networkservicemesh/sdk/pkg/registry/chains/client"
	registryauthorize "github.com/networkservicemesh/sdk/pkg/registry/common/authorize"
	"github.com/networkservicemesh/sdk/pkg/registry/common/null"
	"github.com/networkservicemesh/sdk/pkg/registry/common/retry"
)

// tryTimeout is the deadline of one Register. NSM's registry lets an entry expire that much before its time is over, so
// with the client's own 15 s an entry that lives for seconds would be gone at once.
const tryTimeout = time.Second

// registryTarget is a registry under test, with two callers of one domain.
type registryTarget struct {
	url   *url.URL
	owner *identity
	thief *identity
}

// unique makes a name that no other case and no earlier run has.
func unique(prefix string) string { return prefix + "-" + uuid.NewString()[:8] }

// options are those of NSM's programs: what the registry answers for an endpoint is held against the default policies,
// too. Not for a service: with policies, NSM's client does not get through its own Unregister of one.
func (r *registryTarget) options(ctx context.Context, caller *identity) []registryclient.Option {
	return []registryclient.Option{
		registryclient.WithClientURL(r.url),
		registryclient.WithDialOptions(caller.dialOptions()...),
		registryclient.WithDialTimeout(dialTimeout),
		registryclient.WithAuthorizeNSERegistryClient(registryauthorize.NewNetworkServiceEndpointRegistryClient(
			registryauthorize.WithPolicies(registryClientPolicies...))),
		registryclient.WithNSERetryClient(retry.NewNetworkServiceEndpointRegistryClient(ctx, retry.WithTryTimeout(tryTimeout))),
		registryclient.WithNSRetryClient(retry.NewNetworkServiceRegistryClient(ctx, retry.WithTryTimeout(tryTimeout))),
	}
}

// endpoints is NSM's endpoint registry client: it refreshes and heals until ctx ends.
func (r *registryTarget) endpoints(ctx context.Context, caller *identity) registry.NetworkServiceEndpointRegistryClient {
	return registryclient.NewNetworkServiceEndpointRegistryClient(ctx, r.options(ctx, caller)...)
}

// endpointsOnce is the same without retries: the first refusal is the answer.
func (r *registryTarget) endpointsOnce(ctx context.Context, caller *identity) registry.NetworkServiceEndpointRegistryClient {
	return registryclient.NewNetworkServiceEndpointRegistryClient(ctx,
		append(r.options(ctx, caller), registryclient.WithNSERetryClient(null.NewNetworkServiceEndpointRegistryClient()))...)
}

// services is NSM's service registry client.
func (r *registryTarget) services(ctx context.Context, caller *identity) registry.NetworkServiceRegistryClient {
	return registryclient.NewNetworkServiceRegistryClient(ctx, r.options(ctx, caller)...)
}

// servicesOnce is the same without retries.
func (r *registryTarget) servicesOnce(ctx context.Context, caller *identity) registry.NetworkServiceRegistryClient {
	return registryclient.NewNetworkServiceRegistryClient(ctx,
		append(r.options(ctx, caller), registryclient.WithNSRetryClient(null.NewNetworkServiceRegistryClient()))...)
}

// findEndpoints asks once and reads to the end; a stream that ends with a fault is a fault here.
func findEndpoints(ctx context.Context, client registry.NetworkServiceEndpointRegistryClient, query *registry.NetworkServiceEndpoint) ([]*registry.NetworkServiceEndpoint, error) {
	stream, err := client.Find(ctx, &registry.NetworkServiceEndpointQuery{NetworkServiceEndpoint: query})
	if err != nil {
		return nil, fmt.Errorf("Find of endpoints: %w", err)
	}
	var found []*registry.NetworkServiceEndpoint
	for {
		answer, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return found, nil
		case err != nil:
			return nil, fmt.Errorf("Find of endpoints: %w", err)
		}
		found = append(found, answer.GetNetworkServiceEndpoint())
	}
}

// findServices is the same for network services.
func findServices(ctx context.Context, client registry.NetworkServiceRegistryClient, query *registry.NetworkService) ([]*registry.NetworkService, error) {
	stream, err := client.Find(ctx, &registry.NetworkServiceQuery{NetworkService: query})
	if err != nil {
		return nil, fmt.Errorf("Find of services: %w", err)
	}
	var found []*registry.NetworkService
	for {
		answer, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return found, nil
		case err != nil:
			return nil, fmt.Errorf("Find of services: %w", err)
		}
		found = append(found, answer.GetNetworkService())
	}
}

// watch is an open Find with watch=true; its events come in order.
type watch struct {
	events chan *registry.NetworkServiceEndpointResponse
}

// watchDepth is more events than any case makes.
const watchDepth = 256

// watchEndpoints opens a watch; it is a fault of the registry when one cannot be opened.
func watchEndpoints(ctx context.Context, client registry.NetworkServiceEndpointRegistryClient, query *registry.NetworkServiceEndpoint) (*watch, error) {
	stream, err := client.Find(ctx, &registry.NetworkServiceEndpointQuery{NetworkServiceEndpoint: query, Watch: true})
	if err != nil {
		return nil, fmt.Errorf("a watch of endpoints: %w", err)
	}
	opened := &watch{events: make(chan *registry.NetworkServiceEndpointResponse, watchDepth)}
	go func() {
		defer close(opened.events)
		for {
			event, err := stream.Recv()
			if err != nil {
				return
			}
			opened.events <- event
		}
	}()
	return opened, nil
}

// until returns the first event that is wanted and drops those before it.
func (w *watch) until(limit time.Duration, what string, wanted func(*registry.NetworkServiceEndpointResponse) bool) (*registry.NetworkServiceEndpointResponse, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	seen := 0
	for {
		select {
		case event, open := <-w.events:
			if !open {
				return nil, fmt.Errorf("the watch ended before %s (%d events before)", what, seen)
			}
			if wanted(event) {
				return event, nil
			}
			seen++
		case <-timer.C:
			return nil, fmt.Errorf("no event in %s says %s (%d others)", limit, what, seen)
		}
	}
}

// refusal is the gRPC status in a chain of wrapped errors.
func refusal(err error) *status.Status {
	for e := err; e != nil; e = errors.Unwrap(e) {
		if s, ok := status.FromError(e); ok {
			return s
		}
	}
	return status.Convert(err)
}
