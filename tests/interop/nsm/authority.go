package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// authority is a trust domain that lives as long as the process, for the self-check, which has no Carrick to ask.
type authority struct {
	domain spiffeid.TrustDomain
	root   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

// certificateLife is longer than any case takes.
const certificateLife = time.Hour

func newAuthority(domain string) (*authority, error) {
	trust, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	authority := &authority{domain: trust, key: key}
	template := authority.template(trust.ID().URL())
	template.IsCA = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	authority.root, err = x509.ParseCertificate(der)
	return authority, err
}

func (a *authority) template(id *url.URL) *x509.Certificate {
	a.serial++
	return &x509.Certificate{
		SerialNumber:          big.NewInt(a.serial),
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(certificateLife),
		URIs:                  []*url.URL{id},
		BasicConstraintsValid: true,
	}
}

// issue makes an identity of this domain that believes the domains named.
func (a *authority) issue(path string, believes ...*authority) (*identity, error) {
	id, err := spiffeid.FromPath(a.domain, path)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := a.template(id.URL())
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("an SVID for %s: %w", id, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	bundles := x509bundle.NewSet(x509bundle.FromX509Authorities(a.domain, []*x509.Certificate{a.root}))
	for _, other := range believes {
		bundles.Add(x509bundle.FromX509Authorities(other.domain, []*x509.Certificate{other.root}))
	}
	svid := &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{leaf}, PrivateKey: key}
	return &identity{svid: svid, bundles: bundles, lifetime: tokenLifetime}, nil
}
