"""Flower's ClientApp of a deployed site."""

from matu.federation.flower.node import client_app, deployed_agent

app = client_app(deployed_agent)
