"""The HTTP library that huggingface_hub has: httpx2 since its release 2, httpx before."""

try:
    import httpx2 as httpx
except ImportError:
    import httpx

__all__ = ["httpx"]
