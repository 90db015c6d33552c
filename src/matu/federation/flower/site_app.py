"""Flower's ClientApp of a deployed site."""

from matu.federation.flower.node import client_app, of_this_site

app = client_app(of_this_site)
