"""The page on which a person plays, and watches a policy play: games from requests, the policy's inside, the server."""
