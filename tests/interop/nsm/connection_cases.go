package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v4"
	"github.com/golang/protobuf/ptypes/empty"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/cls"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/kernel"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/client"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/authorize"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/heal"
	"github.com/networkservicemesh/sdk/pkg/networkservice/core/next"
)

const (
	// healLimit is how long a client may take to get to an endpoint that replaced a dead one.
	healLimit = 20 * time.Second
	// brief is a token that a client has to refresh while a case watches.
	brief = 6 * time.Second
	// requestLimit is the deadline of a Request, and of what healing and refresh repeat of it. NSM closes a connection
	// that much before its tokens end.
	requestLimit = 2 * time.Second
)

// connectionTarget is a way from a client in one domain to an endpoint in another.
type connectionTarget struct {
	// manager is what the client asks.
	manager *url.URL
	// registry is where the endpoint registers.
	registry *url.URL
	// domain is the endpoint's, as the client's domain calls it.
	domain string
	// floats is the domain with which endpoints register in place of their own; domain is the same then.
	floats string
	// plainServices leaves that domain off the names of an endpoint's services.
	plainServices bool
	// segments is how many processes there are from client to endpoint, both counted.
	segments int
	// host is where endpoints listen, so that the gateway of their domain reaches them.
	host     string
	client   *identity
	endpoint *identity
}

// connectionCases are the cases that need a way from one domain to another.
var connectionCases = map[string]func(context.Context, *connectionTarget) (any, error){
	"request":      requestsRefreshesAndCloses,
	"auto-refresh": refreshesByItself,
	"heal":         healsAfterTheEndpoint,
	"monitor":      tellsTheEnd,
}

// recorder is the last element of an endpoint: it keeps what arrives.
type recorder struct {
	mu       sync.Mutex
	requests []*networkservice.Connection
	closes   []*networkservice.Connection
}

func (r *recorder) Request(ctx context.Context, request *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	r.mu.Lock()
	r.requests = append(r.requests, request.GetConnection().Clone())
	r.mu.Unlock()
	return next.Server(ctx).Request(ctx, request)
}

func (r *recorder) Close(ctx context.Context, connection *networkservice.Connection) (*empty.Empty, error) {
	r.mu.Lock()
	r.closes = append(r.closes, connection.Clone())
	r.mu.Unlock()
	return next.Server(ctx).Close(ctx, connection)
}

func (r *recorder) seen() (requests, closes []*networkservice.Connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append(requests, r.requests...), append(closes, r.closes...)
}

// provider is an endpoint that runs and is registered.
type provider struct {
	*recorder
	name string
	part *part
	// leave unregisters it.
	leave func(context.Context) error
}

// registered is a name as an endpoint registers it.
func (t *connectionTarget) registered(name string) string {
	if t.floats == "" {
		return name
	}
	return name + "@" + t.floats
}

// offer starts an endpoint of a service and registers it. It does what is said before it records what arrives.
func (t *connectionTarget) offer(ctx context.Context, service, name string, does ...networkservice.NetworkServiceServer) (*provider, error) {
	return t.offerMore(ctx, service, name, false, does...)
}

// offerMore is the same for a service that is there already.
func (t *connectionTarget) offerMore(ctx context.Context, service, name string, there bool, does ...networkservice.NetworkServiceServer) (*provider, error) {
	listener, err := listen(net.JoinHostPort(t.host, "0"))
	if err != nil {
		return nil, err
	}
	recorder := &recorder{}
	part := serveEndpoint(ctx, name, t.endpoint, listener, append(does, recorder)...)
	target := &registryTarget{url: t.registry, owner: t.endpoint}
	if !there {
		if _, err := target.services(ctx, t.endpoint).Register(ctx, &registry.NetworkService{Name: t.registered(service)}); err != nil {
			return nil, fmt.Errorf("Register of the service: %w", err)
		}
	}
	endpoints := target.endpoints(ctx, t.endpoint)
	offered := t.registered(service)
	if t.plainServices {
		offered = service
	}
	asked := &registry.NetworkServiceEndpoint{
		Name: t.registered(name), NetworkServiceNames: []string{offered}, Url: part.url.String(),
		NetworkServiceLabels: map[string]*registry.NetworkServiceLabels{offered: {}},
	}
	answer, err := endpoints.Register(ctx, asked)
	if err != nil {
		return nil, fmt.Errorf("Register of the endpoint: %w", err)
	}
	leave := func(ctx context.Context) error {
		_, err := endpoints.Unregister(ctx, answer.Clone())
		return err
	}
	return &provider{recorder: recorder, name: name, part: part, leave: leave}, nil
}

// connect is NSM's client chain, with the default policies and healing.
func (t *connectionTarget) connect(ctx context.Context, own *identity) networkservice.NetworkServiceClient {
	return client.NewClient(ctx,
		client.WithName(unique("nsc")),
		client.WithClientURL(t.manager),
		client.WithDialOptions(own.dialOptions()...),
		client.WithDialTimeout(dialTimeout),
		client.WithAuthorizeClient(authorize.NewClient(authorize.WithPolicies(clientPolicies...))),
		client.WithHealClient(heal.NewClient(ctx)),
	)
}

func (t *connectionTarget) request(service string) *networkservice.NetworkServiceRequest {
	return &networkservice.NetworkServiceRequest{
		MechanismPreferences: []*networkservice.Mechanism{{Cls: cls.LOCAL, Type: kernel.MECHANISM}},
		Connection: &networkservice.Connection{
			Id:             unique("connection"),
			NetworkService: service + "@" + t.domain,
			Context:        &networkservice.ConnectionContext{},
			Labels:         map[string]string{"app": "interop"},
		},
	}
}

// request asks with the deadline of one Request.
func request(ctx context.Context, nsc networkservice.NetworkServiceClient, asked *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	ctx, done := context.WithTimeout(ctx, requestLimit)
	defer done()
	return nsc.Request(ctx, asked)
}

// checkPath: one segment for each process, each with an id and a token, and every token addressed to the next process.
func (t *connectionTarget) checkPath(connection *networkservice.Connection, endpoint string) error {
	segments := connection.GetPath().GetPathSegments()
	if len(segments) != t.segments {
		return fmt.Errorf("the path has %d segments instead of %d: %s", len(segments), t.segments, names(segments))
	}
	if connection.GetPath().GetIndex() != 0 || connection.GetId() != segments[0].GetId() {
		return fmt.Errorf("the client gets index %d and id %s back", connection.GetPath().GetIndex(), connection.GetId())
	}
	if last := segments[len(segments)-1].GetName(); last != endpoint {
		return fmt.Errorf("the path ends at %s instead of %s", last, endpoint)
	}
	ids := map[string]bool{}
	for at, segment := range segments {
		ids[segment.GetId()] = true
		claims := jwt.RegisteredClaims{}
		if _, _, err := jwt.NewParser().ParseUnverified(segment.GetToken(), &claims); err != nil {
			return fmt.Errorf("the token of segment %d, %s: %w", at, segment.GetName(), err)
		}
		if !claims.VerifyExpiresAt(time.Now(), true) || segment.GetExpires() == nil {
			return fmt.Errorf("the token of segment %d, %s, does not live", at, segment.GetName())
		}
		if at == len(segments)-1 {
			continue
		}
		nextClaims := jwt.RegisteredClaims{}
		if _, _, err := jwt.NewParser().ParseUnverified(segments[at+1].GetToken(), &nextClaims); err != nil {
			return fmt.Errorf("the token of segment %d: %w", at+1, err)
		}
		if !claims.VerifyAudience(nextClaims.Subject, true) {
			return fmt.Errorf("the token of %s is for %v, and the next process is %s", segment.GetName(), claims.Audience, nextClaims.Subject)
		}
	}
	if len(ids) != len(segments) {
		return fmt.Errorf("%d segments share %d ids", len(segments), len(ids))
	}
	return nil
}

func names(segments []*networkservice.PathSegment) string {
	var all []string
	for _, segment := range segments {
		all = append(all, segment.GetName())
	}
	return strings.Join(all, " -> ")
}

// requestsRefreshesAndCloses: NSM sdk, TestNSMGR_InterdomainUseCase.
func requestsRefreshesAndCloses(ctx context.Context, target *connectionTarget) (any, error) {
	service := unique("service")
	endpoint, err := target.offer(ctx, service, unique("final-endpoint"))
	if err != nil {
		return nil, err
	}
	nsc := target.connect(ctx, target.client)
	first, err := request(ctx, nsc, target.request(service))
	if err != nil {
		return nil, fmt.Errorf("Request: %w", err)
	}
	if err := target.checkPath(first, endpoint.name); err != nil {
		return nil, fmt.Errorf("after Request: %w", err)
	}
	if want := service + "@" + target.domain; first.GetNetworkService() != want {
		return nil, fmt.Errorf("the client asked for %s and gets %s", want, first.GetNetworkService())
	}
	second, err := request(ctx, nsc, &networkservice.NetworkServiceRequest{Connection: first.Clone()})
	if err != nil {
		return nil, fmt.Errorf("refresh: %w", err)
	}
	if err := target.checkPath(second, endpoint.name); err != nil {
		return nil, fmt.Errorf("after a refresh: %w", err)
	}
	for at, segment := range second.GetPath().GetPathSegments() {
		if before := first.GetPath().GetPathSegments()[at]; before.GetId() != segment.GetId() || before.GetName() != segment.GetName() {
			return nil, fmt.Errorf("a refresh makes %s %s of segment %d, %s %s", segment.GetName(), segment.GetId(), at, before.GetName(), before.GetId())
		}
	}
	if _, err := nsc.Close(ctx, second); err != nil {
		return nil, fmt.Errorf("Close: %w", err)
	}
	requests, closes := endpoint.seen()
	if len(requests) != 2 || requests[0].GetId() != requests[1].GetId() {
		return nil, fmt.Errorf("the endpoint got %d requests instead of one and its refresh", len(requests))
	}
	if seen := requests[0]; seen.GetNetworkService() != target.registered(service) || seen.GetNetworkServiceEndpointName() != target.registered(endpoint.name) {
		return nil, fmt.Errorf("the endpoint sees %s of %s, and registered with %q", seen.GetNetworkServiceEndpointName(), seen.GetNetworkService(), target.floats)
	}
	if len(closes) != 1 || closes[0].GetId() != requests[0].GetId() {
		return nil, fmt.Errorf("the endpoint got %d closes of its connection instead of one", len(closes))
	}
	return map[string]any{"path": names(second.GetPath().GetPathSegments())}, nil
}

// refreshesByItself: NSM sdk, networkservice/common/refresh: a connection outlives the tokens it was made with.
func refreshesByItself(ctx context.Context, target *connectionTarget) (any, error) {
	service := unique("service")
	endpoint, err := target.offer(ctx, service, unique("final-endpoint"))
	if err != nil {
		return nil, err
	}
	nsc := target.connect(ctx, target.client.withTokens(brief))
	start := time.Now()
	connection, err := request(ctx, nsc, target.request(service))
	if err != nil {
		return nil, fmt.Errorf("Request: %w", err)
	}
	deadline := time.NewTimer(3 * brief)
	defer deadline.Stop()
	for {
		requests, closes := endpoint.seen()
		if len(closes) > 0 {
			return nil, fmt.Errorf("the connection was closed after %s, with %d requests", time.Since(start), len(requests))
		}
		if len(requests) > 2 && time.Since(start) > 2*brief {
			break
		}
		select {
		case <-deadline.C:
			return nil, fmt.Errorf("%d requests in %s: the client refreshes tokens of %s", len(requests), time.Since(start), brief)
		case <-time.After(50 * time.Millisecond):
		}
	}
	requests, _ := endpoint.seen()
	for _, request := range requests {
		if request.GetId() != requests[0].GetId() {
			return nil, fmt.Errorf("a refresh comes under another id")
		}
	}
	if _, err := nsc.Close(ctx, connection); err != nil {
		return nil, fmt.Errorf("Close: %w", err)
	}
	return map[string]any{"requests": len(requests)}, nil
}

// healsAfterTheEndpoint: NSM deployments, interdomain heal: an endpoint dies, another one takes over by itself.
func healsAfterTheEndpoint(ctx context.Context, target *connectionTarget) (any, error) {
	service := unique("service")
	dead, err := target.offer(ctx, service, unique("final-endpoint"))
	if err != nil {
		return nil, err
	}
	nsc := target.connect(ctx, target.client)
	connection, err := request(ctx, nsc, target.request(service))
	if err != nil {
		return nil, fmt.Errorf("Request: %w", err)
	}
	heir, err := target.offer(ctx, service, unique("final-endpoint"))
	if err != nil {
		return nil, err
	}
	if err := dead.leave(ctx); err != nil {
		return nil, fmt.Errorf("Unregister of the endpoint: %w", err)
	}
	dead.part.stop()
	start := time.Now()
	for {
		if requests, _ := heir.seen(); len(requests) > 0 {
			break
		}
		if time.Since(start) > healLimit {
			return nil, fmt.Errorf("no request reached the endpoint that is left in %s", healLimit)
		}
		time.Sleep(10 * time.Millisecond)
	}
	took := time.Since(start)
	if _, err := nsc.Close(ctx, connection); err != nil {
		return nil, fmt.Errorf("Close: %w", err)
	}
	return map[string]any{"healed_ms": took.Milliseconds()}, nil
}

// tellsTheEnd: NSM sdk, networkservice/common/monitor: all connections first, then that one of them is over.
func tellsTheEnd(ctx context.Context, target *connectionTarget) (any, error) {
	service := unique("service")
	endpoint, err := target.offer(ctx, service, unique("final-endpoint"))
	if err != nil {
		return nil, err
	}
	nsc := target.connect(ctx, target.client)
	connection, err := request(ctx, nsc, target.request(service))
	if err != nil {
		return nil, fmt.Errorf("Request: %w", err)
	}
	own := connection.GetPath().GetPathSegments()[0]
	selector := &networkservice.MonitorScopeSelector{PathSegments: []*networkservice.PathSegment{{Id: own.GetId(), Name: own.GetName()}}}
	events, err := target.monitor(ctx, selector)
	if err != nil {
		return nil, err
	}
	first, err := nextEvent(ctx, events)
	if err != nil {
		return nil, err
	}
	if first.GetType() != networkservice.ConnectionEventType_INITIAL_STATE_TRANSFER || len(first.GetConnections()) != 1 {
		return nil, fmt.Errorf("the first event is %s with %d connections", first.GetType(), len(first.GetConnections()))
	}
	if err := endpoint.leave(ctx); err != nil {
		return nil, fmt.Errorf("Unregister of the endpoint: %w", err)
	}
	endpoint.part.stop()
	start := time.Now()
	for {
		event, err := nextEvent(ctx, events)
		if err != nil {
			return nil, fmt.Errorf("before the end of the endpoint was told: %w", err)
		}
		if event.GetType() == networkservice.ConnectionEventType_DELETE {
			break
		}
		down := false
		for _, told := range event.GetConnections() {
			down = down || told.GetState() == networkservice.State_DOWN
		}
		if down {
			break
		}
	}
	return map[string]any{"told_ms": time.Since(start).Milliseconds()}, nil
}
