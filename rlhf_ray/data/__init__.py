"""From a source of prompts to a resumable stream of them."""
