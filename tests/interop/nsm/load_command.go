package main

import (
	"context"
	"fmt"
	"time"
)

// loadRequestsCommand measures Requests from one domain to another: of the domains that are given, or of two that NSM's own
// parts run in this process.
func loadRequestsCommand(ctx context.Context, args []string) error {
	flags := newFlags("load requests", "client", "endpoint")
	seconds := flags.set.Duration("for", 10*time.Second, "how long to ask")
	workers := flags.set.Int("workers", 8, "calls under way at once")
	target, err := connectionFlags(flags, args)
	if err != nil {
		return err
	}
	if target.manager == nil {
		if target, err = ownDomains(ctx); err != nil {
			return err
		}
	}
	measured, err := loadRequests(ctx, target, *workers, *seconds)
	if err != nil {
		return err
	}
	return reportLoad("requests", measured)
}

// reportLoad prints the figures, unless too much failed.
func reportLoad(what string, measured figures) error {
	if measured.Failed > measured.Calls/100 {
		return fmt.Errorf("%d calls failed and %d did not: %s", measured.Failed, measured.Calls, measured.Fault)
	}
	return report(map[string]any{"load": what, "figures": measured})
}

// loadCommand measures a registry. The endpoints of `find` are those that `register` made.
func loadCommand(ctx context.Context, what string, args []string) error {
	if what == "requests" {
		return loadRequestsCommand(ctx, args)
	}
	flags := newFlags("load", "caller")
	at := flags.set.String("registry", "", "tcp://HOST:PORT of the registry")
	count := flags.set.Int("endpoints", 10_000, "endpoints: to register, or to find among")
	seconds := flags.set.Duration("for", 10*time.Second, "how long to find")
	rate := flags.set.Float64("rate", 0, "calls a second; 0 for as many as there are answers")
	workers := flags.set.Int("workers", 32, "calls under way at once")
	connections := flags.set.Int("connections", 4, "TLS connections that share the calls")
	watchers := flags.set.Int("watchers", 1000, "open watches")
	changes := flags.set.Int("changes", 20, "changes that the watches hear")
	if err := flags.set.Parse(args); err != nil {
		return err
	}
	target := &registryTarget{}
	var err error
	if target.url, err = parseURL("registry", *at); err != nil {
		return err
	}
	if target.owner, err = flags.identity("caller"); err != nil {
		return err
	}
	load, err := newLoad(target, *connections)
	if err != nil {
		return err
	}
	var measured figures
	switch what {
	case "register":
		measured = drive(ctx, *workers, *count, 0, *rate, func(worker, number int) error {
			return load.register(ctx, worker, number)
		})
	case "find":
		// A stride that shares no factor with a round count asks for all of them, in no order the registry could like.
		measured = drive(ctx, *workers, 0, *seconds, *rate, func(worker, number int) error {
			return load.find(ctx, worker, number*7919%*count)
		})
	case "watch":
		if measured, err = load.watchDelay(ctx, *watchers, *changes); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%q is no load: register, find, watch, requests", what)
	}
	return reportLoad(what, measured)
}
