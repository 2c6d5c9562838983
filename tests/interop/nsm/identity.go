package main

import (
	"crypto/tls"
	"fmt"
	"strings"
	"time"

	"github.com/edwarnicke/grpcfd"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/networkservicemesh/sdk/pkg/tools/spiffejwt"
	"github.com/networkservicemesh/sdk/pkg/tools/token"
)

// tokenLifetime is NSM_MAX_TOKEN_LIFETIME of NSM's programs.
const tokenLifetime = 10 * time.Minute

// identity is what a process of NSM has from SPIRE: an SVID and the bundles of every trust domain it believes.
type identity struct {
	svid     *x509svid.SVID
	bundles  *x509bundle.Set
	lifetime time.Duration
}

// loadIdentity reads an SVID (PEM), its key (PEM, PKCS #8) and bundles in SPIFFE's format, each as `domain=file`.
func loadIdentity(svid, key string, trust []string) (*identity, error) {
	own, err := x509svid.Load(svid, key)
	if err != nil {
		return nil, fmt.Errorf("the SVID in %s with the key in %s: %w", svid, key, err)
	}
	bundles := x509bundle.NewSet()
	for _, entry := range trust {
		name, file, found := strings.Cut(entry, "=")
		if !found {
			return nil, fmt.Errorf("-trust %s: it reads DOMAIN=FILE", entry)
		}
		domain, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, fmt.Errorf("-trust %s: %w", entry, err)
		}
		bundle, err := spiffebundle.Load(domain, file)
		if err != nil {
			return nil, fmt.Errorf("the bundle of %s: %w", domain, err)
		}
		bundles.Add(bundle.X509Bundle())
	}
	return &identity{svid: own, bundles: bundles, lifetime: tokenLifetime}, nil
}

// withTokens is the same identity with tokens that live as long as is said.
func (i *identity) withTokens(lifetime time.Duration) *identity {
	return &identity{svid: i.svid, bundles: i.bundles, lifetime: lifetime}
}

// id is the own SPIFFE ID.
func (i *identity) id() string { return i.svid.ID.String() }

// tokens mints NSM's tokens with the key of the SVID.
func (i *identity) tokens() token.GeneratorFunc {
	return spiffejwt.TokenGeneratorFunc(i.svid, i.lifetime)
}

// dialOptions are those of NSM's own programs: mutual TLS with anyone of a trusted domain, a token for every call.
func (i *identity) dialOptions() []grpc.DialOption {
	config := tlsconfig.MTLSClientConfig(i.svid, i.bundles, tlsconfig.AuthorizeAny())
	config.MinVersion = tls.VersionTLS12
	return []grpc.DialOption{
		grpc.WithTransportCredentials(grpcfd.TransportCredentials(credentials.NewTLS(config))),
		grpc.WithDefaultCallOptions(
			grpc.WaitForReady(true),
			grpc.PerRPCCredentials(token.NewPerRPCCredentials(i.tokens())),
		),
		grpcfd.WithChainStreamInterceptor(),
		grpcfd.WithChainUnaryInterceptor(),
	}
}

// serverOptions are the other side of dialOptions.
func (i *identity) serverOptions() []grpc.ServerOption {
	config := tlsconfig.MTLSServerConfig(i.svid, i.bundles, tlsconfig.AuthorizeAny())
	config.MinVersion = tls.VersionTLS12
	return []grpc.ServerOption{grpc.Creds(grpcfd.TransportCredentials(credentials.NewTLS(config)))}
}
