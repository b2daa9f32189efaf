"""Pictures, videos, and where their visual tokens lie."""
