package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/golang/protobuf/ptypes/empty"
	"google.golang.org/grpc"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/client"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/clienturl"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/connect"
	"github.com/networkservicemesh/sdk/pkg/networkservice/core/chain"
	"github.com/networkservicemesh/sdk/pkg/networkservice/core/next"
)

// links is a client and an endpoint in each of several domains.
type links struct {
	// ways lead from the client to each endpoint. Their segments are those of the way to the last one.
	ways []*connectionTarget
	// segments is how many processes there are on the whole way.
	segments int
}

// linkCases are the cases that need more than two domains.
var linkCases = map[string]func(context.Context, *links) (any, error){
	"chain":  passesThroughDomains,
	"shared": offersFromSeveralDomains,
}

// linkFlags are `-link DOMAIN=REGISTRY=DIR`: a domain, where its endpoints register and ask, the directory of one's SVID.
type linkFlags []string

func (l *linkFlags) String() string { return strings.Join(*l, " ") }

func (l *linkFlags) Set(value string) error {
	*l = append(*l, value)
	return nil
}

func linksCommand(ctx context.Context, chosen string, args []string) error {
	flags := newFlags("links", "client")
	manager := flags.set.String("manager", "", "tcp://HOST:PORT that the client asks")
	floats := flags.set.String("floats", "", "the domain with which endpoints register in place of their own")
	host := flags.set.String("endpoint-host", loopback, "address on which endpoints listen")
	target := &links{}
	flags.set.IntVar(&target.segments, "segments", 0, "processes from client to the last endpoint, both counted")
	var all linkFlags
	flags.set.Var(&all, "link", "DOMAIN=REGISTRY=DIR; once for each endpoint, in the order of a chain")
	if err := flags.set.Parse(args); err != nil {
		return err
	}
	asked, err := parseURL("manager", *manager)
	if err != nil {
		return err
	}
	own, err := flags.identity("client")
	if err != nil {
		return err
	}
	for _, link := range all {
		parts := strings.SplitN(link, "=", 3)
		if len(parts) != 3 {
			return fmt.Errorf("-link %q: it reads DOMAIN=REGISTRY=DIR", link)
		}
		way := &connectionTarget{
			manager: asked, domain: parts[0], floats: *floats, segments: target.segments, host: *host, client: own,
		}
		if *floats != "" {
			way.domain = *floats
		}
		if way.registry, err = parseURL("link", parts[1]); err != nil {
			return err
		}
		if way.endpoint, err = loadIdentity(parts[2]+"/svid.pem", parts[2]+"/key.pem", flags.trust); err != nil {
			return err
		}
		target.ways = append(target.ways, way)
	}
	if len(target.ways) < 2 {
		return errors.New("two links are the least")
	}
	if _, known := linkCases[chosen]; !known && chosen != "all" {
		return fmt.Errorf("%q is no case: %s", chosen, strings.Join(sorted(linkCases), ", "))
	}
	return runAll(ctx, chosen, linkCases, target)
}

// onward asks for another service than its caller, and lets the caller see what it asked for.
type onward struct {
	service string
	mu      sync.Mutex
	// chosen is the endpoint of each connection, for its refreshes.
	chosen map[string]string
}

func (o *onward) Request(ctx context.Context, request *networkservice.NetworkServiceRequest, opts ...grpc.CallOption) (*networkservice.Connection, error) {
	asked := request.GetConnection()
	service, endpoint := asked.GetNetworkService(), asked.GetNetworkServiceEndpointName()
	o.mu.Lock()
	asked.NetworkService, asked.NetworkServiceEndpointName = o.service, o.chosen[asked.GetId()]
	o.mu.Unlock()
	granted, err := next.Client(ctx).Request(ctx, request, opts...)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	o.chosen[granted.GetId()] = granted.GetNetworkServiceEndpointName()
	o.mu.Unlock()
	granted.NetworkService, granted.NetworkServiceEndpointName = service, endpoint
	return granted, nil
}

func (o *onward) Close(ctx context.Context, connection *networkservice.Connection, opts ...grpc.CallOption) (*empty.Empty, error) {
	o.mu.Lock()
	connection.NetworkService, connection.NetworkServiceEndpointName = o.service, o.chosen[connection.GetId()]
	delete(o.chosen, connection.GetId())
	o.mu.Unlock()
	return next.Client(ctx).Close(ctx, connection, opts...)
}

// passOn is what a passthrough endpoint does: it asks its own manager for a service. As in NSM, it is the servers that have policies.
func (t *connectionTarget) passOn(ctx context.Context, name, service string) networkservice.NetworkServiceServer {
	return chain.NewNetworkServiceServer(
		clienturl.NewServer(t.registry),
		connect.NewServer(client.NewClient(ctx,
			client.WithName(name),
			client.WithAdditionalFunctionality(&onward{service: service, chosen: map[string]string{}}),
			client.WithDialOptions(t.endpoint.dialOptions()...),
			client.WithDialTimeout(dialTimeout),
			client.WithoutRefresh(),
		)),
	)
}

// passesThroughDomains: NSM sdk, Test_Interdomain_PassThroughUsecase: the endpoint of each domain asks for the next one's.
func passesThroughDomains(ctx context.Context, target *links) (any, error) {
	var services, ends []string
	for range target.ways {
		services, ends = append(services, unique("service")), append(ends, unique("endpoint"))
	}
	var all []*provider
	for at, way := range target.ways {
		var does []networkservice.NetworkServiceServer
		if at+1 < len(target.ways) {
			does = append(does, way.passOn(ctx, ends[at], services[at+1]+"@"+target.ways[at+1].domain))
		}
		// What is passed on comes back through here, so the recorder has to be before it.
		recorder := &recorder{}
		endpoint, err := way.offer(ctx, services[at], ends[at], append([]networkservice.NetworkServiceServer{recorder}, does...)...)
		if err != nil {
			return nil, fmt.Errorf("in %s: %w", way.domain, err)
		}
		endpoint.recorder = recorder
		all = append(all, endpoint)
	}
	first, last := target.ways[0], all[len(all)-1]
	nsc := first.connect(ctx, first.client)
	connection, err := request(ctx, nsc, first.request(services[0]))
	if err != nil {
		return nil, fmt.Errorf("Request: %w", err)
	}
	if err := first.checkPath(connection, last.name); err != nil {
		return nil, fmt.Errorf("after Request: %w", err)
	}
	again, err := request(ctx, nsc, &networkservice.NetworkServiceRequest{Connection: connection.Clone()})
	if err != nil {
		return nil, fmt.Errorf("refresh: %w", err)
	}
	if err := first.checkPath(again, last.name); err != nil {
		return nil, fmt.Errorf("after a refresh: %w", err)
	}
	if _, err := nsc.Close(ctx, again); err != nil {
		return nil, fmt.Errorf("Close: %w", err)
	}
	for at, endpoint := range all {
		requests, closes := endpoint.seen()
		if len(requests) != 2 || len(closes) != 1 {
			return nil, fmt.Errorf("endpoint %d of the chain got %d requests and %d closes instead of 2 and 1", at, len(requests), len(closes))
		}
		if requests[0].GetId() != requests[1].GetId() {
			return nil, fmt.Errorf("a refresh comes to endpoint %d under another id", at)
		}
	}
	return map[string]any{"path": names(again.GetPath().GetPathSegments())}, nil
}

// offersFromSeveralDomains: NSM sdk, TestNSMGR_FloatingInterdomain_FourClusters: endpoints of several domains are registered with one
// floating domain, and a client gets to each: to one by the name of its service, to all by the name of a common one.
func offersFromSeveralDomains(ctx context.Context, target *links) (any, error) {
	common := unique("service")
	var shared []*provider
	paths := map[string]bool{}
	for _, way := range target.ways {
		own := unique("service")
		endpoint, err := way.offer(ctx, own, unique("endpoint"))
		if err != nil {
			return nil, err
		}
		nsc := way.connect(ctx, way.client)
		connection, err := request(ctx, nsc, way.request(own))
		if err != nil {
			return nil, fmt.Errorf("Request of %s: %w", own, err)
		}
		if err := way.checkPath(connection, endpoint.name); err != nil {
			return nil, err
		}
		paths[names(connection.GetPath().GetPathSegments()[1:target.segments-1])] = true
		if _, err := nsc.Close(ctx, connection); err != nil {
			return nil, fmt.Errorf("Close: %w", err)
		}
		// The common service belongs to who registers it first; the others register their endpoints alone.
		if endpoint, err = way.offerMore(ctx, common, unique("endpoint"), len(shared) > 0); err != nil {
			return nil, err
		}
		shared = append(shared, endpoint)
	}
	if len(paths) != len(target.ways) {
		return nil, fmt.Errorf("%d domains are reached by %d ways: %v", len(target.ways), len(paths), paths)
	}
	way := target.ways[0]
	for range shared {
		nsc := way.connect(ctx, way.client)
		connection, err := request(ctx, nsc, way.request(common))
		if err != nil {
			return nil, fmt.Errorf("Request of the common service: %w", err)
		}
		if _, err := nsc.Close(ctx, connection); err != nil {
			return nil, fmt.Errorf("Close: %w", err)
		}
	}
	for _, endpoint := range shared {
		if requests, closes := endpoint.seen(); len(requests) != 1 || len(closes) != 1 {
			return nil, fmt.Errorf("%d clients one after the other: %s got %d requests and %d closes", len(shared), endpoint.name, len(requests), len(closes))
		}
	}
	ways := make([]string, 0, len(paths))
	for path := range paths {
		ways = append(ways, path)
	}
	slices.Sort(ways)
	return map[string]any{"ways": ways}, nil
}
