package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/networkservicemesh/sdk/pkg/tools/grpcutils"
)

const (
	// loadService is the network service of every endpoint of a load.
	loadService = "load"
	// emptyPath is the header of a first client. NSM's chain opens a connection for every call, which would measure TLS.
	emptyPath = `{"Index":0,"PathSegments":[]}`
	// callLimit is more than a registry that works needs for one call.
	callLimit = 10 * time.Second
)

// load is a client that keeps its connections, the same for every registry it is pointed at.
type load struct {
	caller   *identity
	target   string
	channels []*grpc.ClientConn
}

func newLoad(target *registryTarget, connections int) (*load, error) {
	load := &load{caller: target.owner, target: grpcutils.URLToTarget(target.url)}
	for range connections {
		channel, err := grpc.NewClient(load.target, target.owner.dialOptions()...)
		if err != nil {
			return nil, fmt.Errorf("cannot dial %s: %w", target.url, err)
		}
		load.channels = append(load.channels, channel)
	}
	return load, nil
}

func (l *load) endpoints(worker int) registry.NetworkServiceEndpointRegistryClient {
	return registry.NewNetworkServiceEndpointRegistryClient(l.channels[worker%len(l.channels)])
}

func nameOf(number int) string { return fmt.Sprintf("load-%07d", number) }

// register makes or renews one endpoint.
func (l *load) register(ctx context.Context, worker, number int) error {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "path", emptyPath), callLimit)
	defer cancel()
	_, err := l.endpoints(worker).Register(ctx, newEndpoint(nameOf(number), loadService, "red"))
	return err
}

// find asks for one endpoint by its name.
func (l *load) find(ctx context.Context, worker, number int) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	stream, err := l.endpoints(worker).Find(ctx, &registry.NetworkServiceEndpointQuery{
		NetworkServiceEndpoint: &registry.NetworkServiceEndpoint{Name: nameOf(number)},
	})
	if err != nil {
		return err
	}
	found := 0
	for {
		_, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		found++
	}
	if found != 1 {
		return fmt.Errorf("Find of %s gives %d endpoints", nameOf(number), found)
	}
	return nil
}

// figures are what a load measured.
type figures struct {
	Calls  int     `json:"calls"`
	Rate   float64 `json:"rate_per_s"`
	P50    float64 `json:"p50_ms"`
	P99    float64 `json:"p99_ms"`
	Max    float64 `json:"max_ms"`
	Failed int     `json:"failed"`
	Fault  string  `json:"fault,omitempty"`
}

func summarise(took []time.Duration, elapsed time.Duration, failed int, fault error) figures {
	slices.Sort(took)
	at := func(share float64) float64 {
		if len(took) == 0 {
			return 0
		}
		return float64(took[min(int(share*float64(len(took))), len(took)-1)].Microseconds()) / 1000
	}
	said := ""
	if fault != nil {
		said = fault.Error()
	}
	return figures{len(took), float64(len(took)) / elapsed.Seconds(), at(0.5), at(0.99), at(1), failed, said}
}

// drive makes calls that need nothing done after them; see driveAnd.
func drive(ctx context.Context, workers, count int, seconds time.Duration, rate float64, call func(worker, number int) error) figures {
	return driveAnd(ctx, workers, count, seconds, rate, func(worker, number int) (func() error, error) {
		return func() error { return nil }, call(worker, number)
	})
}

// driveAnd makes calls with some workers until the count or the time is over, and after each call what belongs to it, which is
// no part of the call's time. With a rate, a call's time begins when it
// was due, so that a registry that stalls is charged for the calls it kept waiting; without one, every worker calls
// again as soon as it has its answer.
func driveAnd(ctx context.Context, workers, count int, seconds time.Duration, rate float64, call func(worker, number int) (after func() error, err error)) figures {
	var (
		number    atomic.Int64
		mu        sync.Mutex
		took      []time.Duration
		failed    int
		lastFault error
		group     sync.WaitGroup
	)
	start := time.Now()
	for worker := range workers {
		group.Go(func() {
			for ctx.Err() == nil {
				mine := int(number.Add(1)) - 1
				if count > 0 && mine >= count {
					return
				}
				due := time.Now()
				if rate > 0 {
					due = start.Add(time.Duration(float64(mine) / rate * float64(time.Second)))
					time.Sleep(time.Until(due))
				}
				if seconds > 0 && time.Since(start) >= seconds {
					return
				}
				after, err := call(worker, mine)
				elapsed := time.Since(due)
				if err == nil {
					err = after()
				}
				mu.Lock()
				if err != nil {
					failed++
					lastFault = err
				} else {
					took = append(took, elapsed)
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return summarise(took, time.Since(start), failed, lastFault)
}

// watchDelay opens watchers of the service and measures, for each of some changes, until every watcher has heard.
func (l *load) watchDelay(ctx context.Context, watchers, changes int) (figures, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	service := unique("watched")
	heard := make(chan string, watchers*(changes+1))
	for watcher := range watchers {
		stream, err := l.endpoints(watcher).Find(ctx, &registry.NetworkServiceEndpointQuery{
			NetworkServiceEndpoint: &registry.NetworkServiceEndpoint{NetworkServiceNames: []string{service}}, Watch: true,
		})
		if err != nil {
			return figures{}, fmt.Errorf("watcher %d: %w", watcher, err)
		}
		go func() {
			for {
				event, err := stream.Recv()
				if err != nil {
					return
				}
				heard <- event.GetNetworkServiceEndpoint().GetName()
			}
		}()
	}
	var took []time.Duration
	begin := time.Now()
	// The first change is not counted: it proves that every watch is open.
	for change := range changes + 1 {
		name := unique("watched")
		start := time.Now()
		registering, done := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "path", emptyPath), callLimit)
		_, err := l.endpoints(0).Register(registering, newEndpoint(name, service, "red"))
		done()
		if err != nil {
			return figures{}, fmt.Errorf("Register of a watched endpoint: %w", err)
		}
		timeout := time.After(callLimit)
		for ears := 0; ears < watchers; {
			select {
			case said := <-heard:
				if said == name {
					ears++
					if change > 0 {
						took = append(took, time.Since(start))
					}
				}
			case <-timeout:
				return figures{}, fmt.Errorf("%d of %d watchers heard of a change in %s", ears, watchers, callLimit)
			}
		}
	}
	return summarise(took, time.Since(begin), 0, nil), nil
}
