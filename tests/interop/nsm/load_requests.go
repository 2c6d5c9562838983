package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/updatepath"
	"github.com/networkservicemesh/sdk/pkg/networkservice/core/chain"
	"github.com/networkservicemesh/sdk/pkg/tools/grpcutils"
)

// requester asks a manager as NSM's client does, but on a connection that it keeps: NSM's chain opens one for every
// Request, which would measure TLS.
func (t *connectionTarget) requester() (networkservice.NetworkServiceClient, error) {
	channel, err := grpc.NewClient(grpcutils.URLToTarget(t.manager), t.client.dialOptions()...)
	if err != nil {
		return nil, fmt.Errorf("cannot dial %s: %w", t.manager, err)
	}
	return chain.NewNetworkServiceClient(updatepath.NewClient(unique("nsc")), networkservice.NewNetworkServiceClient(channel)), nil
}

// loadRequests makes connections to one endpoint of the other domain, each with a Request and a Close, and measures the
// Requests. The first one, which finds the way there, is not counted.
func loadRequests(ctx context.Context, target *connectionTarget, workers int, seconds time.Duration) (figures, error) {
	service := unique("service")
	if _, err := target.offer(ctx, service, unique("final-endpoint")); err != nil {
		return figures{}, err
	}
	var clients []networkservice.NetworkServiceClient
	for range workers {
		client, err := target.requester()
		if err != nil {
			return figures{}, err
		}
		clients = append(clients, client)
	}
	leave := func(worker int, connection *networkservice.Connection) error {
		ctx, done := context.WithTimeout(ctx, callLimit)
		defer done()
		_, err := clients[worker].Close(ctx, connection)
		return err
	}
	ask := func(worker int) (*networkservice.Connection, error) {
		ctx, done := context.WithTimeout(ctx, callLimit)
		defer done()
		return clients[worker].Request(ctx, target.request(service))
	}
	for worker := range workers {
		connection, err := ask(worker)
		if err != nil {
			return figures{}, fmt.Errorf("the first Request: %w", err)
		}
		if err := leave(worker, connection); err != nil {
			return figures{}, fmt.Errorf("the first Close: %w", err)
		}
	}
	measured := driveAnd(ctx, workers, 0, seconds, 0, func(worker, _ int) (func() error, error) {
		connection, err := ask(worker)
		return func() error { return leave(worker, connection) }, err
	})
	return measured, nil
}
