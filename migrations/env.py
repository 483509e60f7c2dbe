"""Runs migrations on the connection that control_plane.db.migrate opened: one transaction, under its lock."""

from alembic import context

from control_plane.db.base import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, transactional_ddl=True)
context.run_migrations()
