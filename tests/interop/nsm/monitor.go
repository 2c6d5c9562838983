package main

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/sdk/pkg/tools/grpcutils"
)

// monitor opens MonitorConnections at the manager, in the client's name.
func (t *connectionTarget) monitor(ctx context.Context, selector *networkservice.MonitorScopeSelector) (<-chan *networkservice.ConnectionEvent, error) {
	channel, err := grpc.NewClient(grpcutils.URLToTarget(t.manager), t.client.dialOptions()...)
	if err != nil {
		return nil, fmt.Errorf("cannot dial %s: %w", t.manager, err)
	}
	context.AfterFunc(ctx, func() { _ = channel.Close() })
	stream, err := networkservice.NewMonitorConnectionClient(channel).MonitorConnections(ctx, selector)
	if err != nil {
		return nil, fmt.Errorf("MonitorConnections: %w", err)
	}
	events := make(chan *networkservice.ConnectionEvent, watchDepth)
	go func() {
		defer close(events)
		for {
			event, err := stream.Recv()
			if err != nil {
				return
			}
			events <- event
		}
	}()
	return events, nil
}

// nextEvent waits for an event, as long as healing may take.
func nextEvent(ctx context.Context, events <-chan *networkservice.ConnectionEvent) (*networkservice.ConnectionEvent, error) {
	ctx, cancel := context.WithTimeout(ctx, healLimit)
	defer cancel()
	select {
	case event, open := <-events:
		if !open {
			return nil, errors.New("the stream of MonitorConnections ended")
		}
		return event, nil
	case <-ctx.Done():
		return nil, errors.New("MonitorConnections says nothing")
	}
}
