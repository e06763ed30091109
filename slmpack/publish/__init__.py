"""Publish: versions, aliases and tags of the registry; finding what was published before; rollback; watching sources.

The alias moves last. Imports `prove` and below.

Door: publish.publish_version, publish.mark_refused, request.check_request, request.Request,
find.find_published, rollback.plan_rollback, watch.find_new_version, page.log_page.Proofs
"""
