// Command nsm-interop drives Carrick with Network Service Mesh's own client and server chains, over mutual TLS with
// SPIFFE certificates. A case prints one line of JSON, or fails with what is wrong.
//
//	nsm-interop self-check [CASE|all]       every case against NSM's own parts
//	nsm-interop registry CASE|all FLAGS     a case against a registry
//	nsm-interop connection CASE|all FLAGS   a case against a way from one domain to another
//	nsm-interop links chain|shared FLAGS    a client and endpoints in several domains
//	nsm-interop find FLAGS                  what a registry has of a service
//	nsm-interop serve-registry FLAGS        NSM's memory registry alone
//	nsm-interop serve-domain FLAGS          a domain of NSM's parts
//	nsm-interop load register|find|watch|requests FLAGS
//	                                        the figures of a registry, or of a way from one domain to another
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/networkservicemesh/api/pkg/api/registry"
)

// caseLimit is more than any case takes, so that a registry that never answers fails it.
const caseLimit = 60 * time.Second

const verbs = "self-check, registry, connection, links, find, serve-registry, serve-domain, load"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// NSM's chains log every hop; a failed case says what is wrong itself.
	if os.Getenv("NSM_INTEROP_LOG") == "" {
		logrus.SetOutput(io.Discard)
		log.SetOutput(io.Discard)
	}
	if err := command(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "nsm-interop:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("say what: " + verbs)
	}
	verb, args := args[0], args[1:]
	switch verb {
	case "self-check":
		return selfCheck(ctx, first(args, "all"))
	case "registry":
		return registryCommand(ctx, first(args, "all"), rest(args))
	case "connection":
		return connectionCommand(ctx, first(args, "all"), rest(args))
	case "links":
		return linksCommand(ctx, first(args, ""), rest(args))
	case "find":
		return findCommand(ctx, args)
	case "serve-registry":
		return serveRegistryCommand(ctx, args)
	case "serve-domain":
		return serveDomainCommand(ctx, args)
	case "load":
		return loadCommand(ctx, first(args, ""), rest(args))
	default:
		return fmt.Errorf("%q is no verb: %s", verb, verbs)
	}
}

func first(args []string, otherwise string) string {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return otherwise
	}
	return args[0]
}

func rest(args []string) []string {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return args
	}
	return args[1:]
}

func sorted[Case any](cases map[string]Case) []string { return slices.Sorted(maps.Keys(cases)) }

// run is one case, with its line of JSON.
func run[Target any](ctx context.Context, name string, cases map[string]func(context.Context, Target) (any, error), target Target) error {
	ctx, cancel := context.WithTimeout(ctx, caseLimit)
	defer cancel()
	start := time.Now()
	details, err := cases[name](ctx, target)
	if err != nil {
		return err
	}
	return report(map[string]any{"case": name, "ok": true, "ms": time.Since(start).Milliseconds(), "details": details})
}

func report(line map[string]any) error {
	return json.NewEncoder(os.Stdout).Encode(line)
}

// believed are `-trust DOMAIN=FILE`, any number of them.
type believed []string

func (b *believed) String() string { return strings.Join(*b, ",") }

func (b *believed) Set(value string) error {
	*b = append(*b, value)
	return nil
}

// identityFlags read `-NAME DIR`, a directory with svid.pem and key.pem.
type identityFlags struct {
	set   *flag.FlagSet
	trust believed
	dirs  map[string]*string
}

func newFlags(name string, who ...string) *identityFlags {
	flags := &identityFlags{set: flag.NewFlagSet(name, flag.ContinueOnError), dirs: map[string]*string{}}
	flags.set.Var(&flags.trust, "trust", "DOMAIN=FILE of a SPIFFE bundle; once for each domain")
	for _, role := range who {
		flags.dirs[role] = flags.set.String(role, "", "directory with svid.pem and key.pem of the "+role)
	}
	return flags
}

func (f *identityFlags) identity(role string) (*identity, error) {
	dir := *f.dirs[role]
	if dir == "" {
		return nil, fmt.Errorf("-%s DIR is missing", role)
	}
	return loadIdentity(dir+"/svid.pem", dir+"/key.pem", f.trust)
}

func parseURL(flag, text string) (*url.URL, error) {
	parsed, err := url.Parse(text)
	if err != nil || parsed.Host == "" {
		return nil, fmt.Errorf("-%s %q: it reads tcp://HOST:PORT", flag, text)
	}
	return parsed, nil
}

func registryCommand(ctx context.Context, chosen string, args []string) error {
	flags := newFlags("registry", "owner", "thief")
	at := flags.set.String("registry", "", "tcp://HOST:PORT of the registry")
	if err := flags.set.Parse(args); err != nil {
		return err
	}
	target := &registryTarget{}
	var err error
	if target.url, err = parseURL("registry", *at); err != nil {
		return err
	}
	if target.owner, err = flags.identity("owner"); err != nil {
		return err
	}
	if target.thief, err = flags.identity("thief"); err != nil {
		return err
	}
	if _, known := registryCases[chosen]; !known && chosen != "all" {
		return fmt.Errorf("%q is no case: %s", chosen, strings.Join(sorted(registryCases), ", "))
	}
	return runAll(ctx, chosen, registryCases, target)
}

func connectionCommand(ctx context.Context, chosen string, args []string) error {
	target, err := connectionFlags(newFlags("connection", "client", "endpoint"), args)
	if err != nil {
		return err
	}
	if target.manager == nil {
		return errors.New("-manager tcp://HOST:PORT is missing")
	}
	if _, known := connectionCases[chosen]; !known && chosen != "all" {
		return fmt.Errorf("%q is no case: %s", chosen, strings.Join(sorted(connectionCases), ", "))
	}
	return runAll(ctx, chosen, connectionCases, target)
}

// connectionFlags read a way from one domain to another; without -manager it is empty.
func connectionFlags(flags *identityFlags, args []string) (*connectionTarget, error) {
	manager := flags.set.String("manager", "", "tcp://HOST:PORT that the client asks")
	registryAt := flags.set.String("registry", "", "tcp://HOST:PORT where the endpoint registers")
	target := &connectionTarget{}
	flags.set.StringVar(&target.domain, "domain", "", "the endpoint's domain")
	flags.set.IntVar(&target.segments, "segments", 0, "processes from client to endpoint, both counted")
	flags.set.StringVar(&target.floats, "floats", "", "the domain with which endpoints register in place of their own")
	flags.set.BoolVar(&target.plainServices, "plain-services", false, "with -floats: their services stay without the domain")
	flags.set.StringVar(&target.host, "endpoint-host", loopback, "address on which endpoints listen")
	if err := flags.set.Parse(args); err != nil || *manager == "" {
		return target, err
	}
	var err error
	if target.manager, err = parseURL("manager", *manager); err != nil {
		return nil, err
	}
	if target.registry, err = parseURL("registry", *registryAt); err != nil {
		return nil, err
	}
	if target.client, err = flags.identity("client"); err != nil {
		return nil, err
	}
	target.endpoint, err = flags.identity("endpoint")
	return target, err
}

func findCommand(ctx context.Context, args []string) error {
	flags := newFlags("find", "caller")
	at := flags.set.String("registry", "", "tcp://HOST:PORT of the registry")
	service := flags.set.String("service", "", "the service; all when empty")
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
	ctx, cancel := context.WithTimeout(ctx, caseLimit)
	defer cancel()
	services, err := findServices(ctx, target.servicesOnce(ctx, target.owner), &registry.NetworkService{Name: *service})
	if err != nil {
		return err
	}
	query := &registry.NetworkServiceEndpoint{}
	if *service != "" {
		query.NetworkServiceNames = []string{*service}
	}
	endpoints, err := findEndpoints(ctx, target.endpointsOnce(ctx, target.owner), query)
	if err != nil {
		return err
	}
	return report(map[string]any{"case": "find", "ok": true, "services": services, "endpoints": endpoints})
}
